// Draws a Plotly figure in place: points are added to the chart that is there, so that a zoom survives and the browser
// does a fraction of the work of a new chart. What nobody can see is not drawn: the cores are those that train.

const LIBRARY = new URL("lab/plotly/plotly.min.js", document.baseURI).href

// Running the library for the first time takes a browser half a second, in which it answers nobody: it waits until what
// else is on the page has been drawn, and nobody has typed or clicked for a moment.
const REST_MS = 500
const idle = window.requestIdleCallback ?? setTimeout
let touched = performance.now()
for (const kind of ["input", "keydown", "pointerdown"]) {
  document.addEventListener(kind, () => (touched = performance.now()), { capture: true, passive: true })
}

async function rest() {
  for (let left = REST_MS; left > 0; left = touched + REST_MS - performance.now()) {
    await new Promise((done) => setTimeout(done, left))
    await new Promise((done) => idle(done, { timeout: 2000 }))
  }
}

function library() {
  window.labPlotly ??= rest().then(
    () =>
      new Promise((loaded, failed) => {
        const script = document.createElement("script")
        script.src = LIBRARY
        script.onload = () => loaded(window.Plotly)
        script.onerror = (error) => {
          delete window.labPlotly // so that the next drawing tries again
          failed(error)
        }
        document.head.append(script)
      }),
  )
  return window.labPlotly
}

// The figure's colours are those of a light background; the theme has its own for each of them.
function themed({ figure: text, palette }, style) {
  const colours = style.getPropertyValue("--st-chart-categorical-colors").split(",")
  palette.forEach((colour, i) => {
    if (colours[i]) text = text.replaceAll(colour, colours[i].trim())
  })
  const figure = JSON.parse(text)
  const { layout } = figure
  const ink = style.getPropertyValue("--st-text-color")
  const grid = style.getPropertyValue("--st-border-color")
  layout.font = { family: style.getPropertyValue("--st-font"), color: ink, size: 12 }
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)"
  layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: grid, activecolor: ink }
  layout.hoverlabel = { bgcolor: style.getPropertyValue("--st-secondary-background-color"), bordercolor: grid }
  for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { gridcolor: grid, linecolor: grid, spikecolor: ink })
  return figure
}

// Nothing leaves this machine: no button that sends a chart to a server.
const UNWANTED = ["sendChartToCloud", "lasso2d", "select2d", "autoScale2d"]
const CONFIG = { displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: UNWANTED }

class Chart {
  constructor(box) {
    this.box = box
    this.inView = false
    this.drawn = "" // what the chart shows now: figure and theme
    this.view = new IntersectionObserver((entries) => {
      this.inView = entries.at(-1).isIntersecting
      this.draw()
    })
    this.view.observe(box)
    this.size = new ResizeObserver(() => this.drawn && box.offsetWidth && window.Plotly.Plots.resize(box))
    this.size.observe(box)
    this.onShow = () => this.draw()
    document.addEventListener("visibilitychange", this.onShow)
  }

  update(data) {
    this.data = data
    this.box.style.height = `${data.height}px`
    this.draw()
  }

  async draw() {
    if (!this.inView || document.hidden || !this.data) return
    const Plotly = await library()
    if (!this.box.isConnected) return
    const style = getComputedStyle(this.box)
    const wanted = this.data.figure + style.getPropertyValue("--st-text-color")
    if (wanted === this.drawn) return
    this.drawn = wanted
    const figure = themed(this.data, style)
    await Plotly.react(this.box, figure.data, figure.layout, CONFIG)
  }

  remove() {
    this.view.disconnect()
    this.size.disconnect()
    document.removeEventListener("visibilitychange", this.onShow)
    window.Plotly?.purge(this.box)
  }
}

// One box for each chart: a title, the chart, a sentence. Those that are there already stay.
function boxes(list, count) {
  while (list.children.length > count) list.lastElementChild.remove()
  while (list.children.length < count) {
    const figure = document.createElement("figure")
    figure.className = "lab-chart"
    figure.append(...["h5", "div", "p"].map((tag) => document.createElement(tag)))
    figure.children[1].className = "lab-plot"
    list.append(figure)
  }
  return [...list.children]
}

function show(list, { charts, palette }) {
  boxes(list, charts.length).forEach((figure, i) => {
    const [title, box, caption] = figure.children
    figure.classList.toggle("lab-wide", charts[i].wide)
    title.textContent = charts[i].title
    caption.textContent = charts[i].caption
    box.labChart ??= new Chart(box)
    box.labChart.update({ ...charts[i], palette })
  })
}

// Charts that follow the feed of the page's numbers say when they were made: what came since then is newer.
export default function ({ data, parentElement }) {
  if (!data) return void library()
  const list = parentElement.querySelector(".lab-charts")
  if (!data.made || list.labMade !== data.made) show(list, data)
  else list.querySelectorAll(".lab-plot").forEach((box) => box.labChart?.draw()) // in another theme, maybe
  list.labMade = data.made
  list.labFollow ??= ({ detail }) => list.labMade && show(list, { charts: detail, palette: data.palette })
  document.addEventListener("lab-charts", list.labFollow)
  return () => {
    document.removeEventListener("lab-charts", list.labFollow)
    delete list.labMade
    for (const box of list.querySelectorAll(".lab-plot")) {
      box.labChart?.remove()
      delete box.labChart
    }
  }
}
