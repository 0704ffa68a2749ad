// A run in numbers and in words: text nodes only, changed in place. On a live page this costs the browser a tenth of
// what as many elements of Streamlit do.

function element(tag, name, text = "") {
  const made = document.createElement(tag)
  made.className = name
  made.textContent = text
  return made
}

// As many children as there are items, made by `make`; those that are there stay.
function fit(box, items, make) {
  while (box.children.length > items.length) box.lastElementChild.remove()
  while (box.children.length < items.length) box.append(make())
  return items.map((item, i) => [item, box.children[i]])
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text
}

function progress(box, { text, share }) {
  say(box.children[0], text)
  box.children[1].firstElementChild.style.width = `${100 * share}%`
}

function numbers(box, items) {
  const make = () => {
    const made = element("div", "lab-number")
    made.append(element("span", ""), element("b", ""))
    return made
  }
  for (const [{ label, value, help }, node] of fit(box, items, make)) {
    say(node.children[0], label)
    say(node.children[1], value)
    node.title = help
  }
}

function findings(box, items, open) {
  const shown = JSON.stringify(items)
  if (box.labShown === shown) return
  box.labShown = shown
  box.replaceChildren(
    ...items.map(({ severity, title, text, settings }) => {
      const made = element("p", `lab-finding lab-${severity}`)
      made.append(element("b", "", title), ` ${text}`)
      for (const [name, label] of settings) {
        const link = element("button", "lab-setting", label)
        link.title = "Open a new run's form with this run's settings, at this one"
        link.onclick = () => open(name)
        made.append(" ", link)
      }
      return made
    }),
  )
}

// The form appears some moments after it was asked for.
function lookAt(name, until = Date.now() + 10_000) {
  const field = document.querySelector(`.st-key-setting-${CSS.escape(name)}`)
  if (field) {
    field.scrollIntoView({ block: "center" })
    field.querySelector("input, button")?.focus({ preventScroll: true })
  } else if (Date.now() < until) setTimeout(() => lookAt(name, until), 100)
}

export default function ({ data, parentElement, setTriggerValue }) {
  const [bar, grid, said] = parentElement.querySelector(".lab-run").children
  progress(bar, data.progress)
  numbers(grid, data.numbers)
  findings(said, data.findings, (name) => {
    setTriggerValue("setting", name)
    lookAt(name)
  })
}
