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

// The form appears, and unfolds, some moments after it was asked for; what is folded cannot take the focus.
function lookAt(name, until = Date.now() + 10_000) {
  const field = document.querySelector(`.st-key-setting-${CSS.escape(name)}`)
  const input = field?.querySelector("input") ?? field?.querySelector("button")
  field?.scrollIntoView({ block: "center" })
  input?.focus({ preventScroll: true })
  if ((!input || document.activeElement !== input) && Date.now() < until) setTimeout(() => lookAt(name, until), 100)
}

function show([bar, grid, said], news, open) {
  progress(bar, news.progress)
  numbers(grid, news.numbers)
  findings(said, news.findings, open)
}

// Asks for news while the page is in sight; charts are passed on to the component that draws them.
class Feed {
  constructor({ address, every, ...marks }, onNews, onChange) {
    Object.assign(this, { every: 1000 * every, marks, onNews, onChange, chartsAt: Date.now() })
    this.address = new URL(address, document.baseURI).href
    this.onShow = () => document.hidden || this.ask()
    document.addEventListener("visibilitychange", this.onShow)
    this.wait(this.every)
  }

  wait(ms) {
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.ask(), ms)
  }

  async ask() {
    clearTimeout(this.timer)
    if (this.stopped || document.hidden) return
    const asked = new URLSearchParams({ ...this.marks, age: (Date.now() - this.chartsAt) / 1000 })
    let wait = this.every
    try {
      const answer = await fetch(`${this.address}&${asked}`)
      if (this.stopped) return
      if (answer.status === 200) this.take(await answer.json())
      else if (answer.status !== 204) {
        this.onChange()
        wait = 10_000 // should the page not be drawn anew
      }
    } catch {
      wait = 5000 // the server is away; Streamlit says so
    }
    if (!this.stopped) this.wait(wait)
  }

  take({ charts, version, step, outline, ...news }) {
    if (this.stopped) return
    this.marks = { version, outline, step: charts ? step : this.marks.step }
    this.onNews(news)
    if (!charts) return
    this.chartsAt = Date.now()
    document.dispatchEvent(new CustomEvent("lab-charts", { detail: charts }))
  }

  stop() {
    this.stopped = true
    clearTimeout(this.timer)
    document.removeEventListener("visibilitychange", this.onShow)
  }
}

export default function ({ data, parentElement, setTriggerValue }) {
  const box = parentElement.querySelector(".lab-run")
  const open = (name) => {
    setTriggerValue("setting", name)
    lookAt(name)
  }
  if (box.labMade !== data.made) { // else what came since then is newer
    box.labMade = data.made
    box.labFeed?.stop()
    show(box.children, data, open)
    const changed = () => setTriggerValue("changed", Date.now())
    box.labFeed = data.feed && new Feed(data.feed, (news) => show(box.children, news, open), changed)
  }
  return () => {
    box.labFeed?.stop()
    delete box.labMade
  }
}
