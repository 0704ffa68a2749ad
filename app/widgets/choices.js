// A generated text, token by token; text nodes only. On hover: what the model held likely in that place.

const END_OF_TEXT = 50256
const percent = (p) => `${(100 * p).toFixed(2)} %`

function element(tag, name, text) {
  const made = document.createElement(tag)
  made.className = name
  made.textContent = text
  return made
}

function span({ text, id, p }) {
  const kind = id === END_OF_TEXT ? "mark" : text === "" ? "part" : text.includes("\n") ? "line" : ""
  const made = element("span", kind, text)
  made.style.setProperty("--lab-p", `${(45 * p).toFixed(1)}%`)
  return made
}

function row(name, p, isChosen) {
  const made = element("div", isChosen ? "row chosen" : "row", "")
  const bar = element("i", "", "")
  bar.style.width = `${Math.max(1, 100 * p)}%`
  const track = element("span", "track", "")
  track.append(bar)
  made.append(element("span", "name", name), track, element("span", "number", percent(p)))
  return made
}

function fill(tip, { show, id, p, drawn, best }) {
  const rows = best.map(([name, chance, token]) => row(name, chance, token === id))
  if (!best.some(([, , token]) => token === id)) rows.push(row(show, p, true))
  const told = best.reduce((sum, [, chance, token]) => sum + (token === id ? 0 : chance), p)
  rows.push(row("all others", Math.max(0, 1 - told), false))
  const how = Math.abs(drawn - p) > 5e-5 ? `With these settings it was drawn with ${percent(drawn)}.` : ""
  tip.replaceChildren(...rows, element("small", "", how))
}

function place(tip, target, outer) {
  const word = target.getClientRects()[0] // its first line
  const frame = outer.getBoundingClientRect()
  tip.hidden = false
  const left = Math.min(word.left - frame.left, frame.width - tip.offsetWidth)
  tip.style.left = `${Math.max(0, left)}px`
  const above = word.bottom + tip.offsetHeight + 8 > innerHeight && word.top > tip.offsetHeight
  tip.style.top = `${above ? word.top - frame.top - tip.offsetHeight - 4 : word.bottom - frame.top + 4}px`
}

export default function ({ data, parentElement }) {
  const outer = parentElement.querySelector(".lab-choices")
  const [box, tip] = outer.children
  if (box.labNumber !== data.number) {
    box.labNumber = data.number
    box.labTokens = []
    box.replaceChildren(element("b", "", data.prompt))
    tip.hidden = true
  }
  const last = box.labTokens.at(-1) // the last one may have changed: a half character at the end shows as such
  if (last && last.text !== data.tokens[box.labTokens.length - 1]?.text) {
    box.lastChild.remove()
    box.labTokens.pop()
  }
  box.append(...data.tokens.slice(box.labTokens.length).map(span))
  box.labTokens = data.tokens
  box.onpointerover = (event) => {
    const at = [...box.children].indexOf(event.target) - 1 // the prompt comes first
    if (at < 0) return void (tip.hidden = true)
    fill(tip, box.labTokens[at])
    place(tip, event.target, outer)
  }
  box.onpointerleave = () => (tip.hidden = true)
  box.onscroll = () => (tip.hidden = true)
}
