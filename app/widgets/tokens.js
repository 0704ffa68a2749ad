// Tokens side by side, in four tints by turns so that neighbours differ; always as text, never as HTML.

const TINTS = [0, 1, 2, 3].map((i) => `var(--lab-tint-${i})`)
const END_OF_TEXT = 50256

function span([text, id], place) {
  const element = document.createElement("span")
  element.textContent = text.replaceAll("\n", "⏎\n")
  element.title = `${id}  ${JSON.stringify(text)}`
  if (id === END_OF_TEXT) element.className = "mark"
  else element.style.background = TINTS[place % TINTS.length]
  return element
}

export default function ({ data, parentElement }) {
  const box = parentElement.querySelector(".lab-tokens")
  const colours = getComputedStyle(parentElement).getPropertyValue("--st-chart-categorical-colors").split(",")
  TINTS.forEach((_, i) => box.style.setProperty(`--lab-tint-${i}`, `color-mix(in srgb, ${colours[i] || "gray"} 24%, transparent)`))
  box.replaceChildren(...data.map(span))
}
