// Saves a chart that is on the page as a file, in the browser alone: the server makes nothing and keeps nothing.

const WIDTH = 1200
const LEAST_HEIGHT = 640
const ROW = 24 // pixels, of a name in the legend

// For paper: a white background, the colours that the figure has for it, and the whole legend. What is hidden or zoomed
// into on the page stays so.
function printed(box, title) {
  const figure = JSON.parse(box.labChart.data.figure)
  const { data, layout } = figure
  data.forEach((line, i) => (line.visible = box.data[i]?.visible ?? true))
  for (const axis of ["xaxis", "yaxis"]) if (!box.layout[axis].autorange) layout[axis].range = box.layout[axis].range
  const { maxheight, entrywidth, ...legend } = layout.legend
  layout.legend = { ...legend, orientation: "v", x: 1.02, xanchor: "left", y: 1, yanchor: "top" }
  layout.font = { family: "sans-serif", color: "#1c2733", size: 13 }
  layout.paper_bgcolor = layout.plot_bgcolor = "#ffffff"
  for (const axis of [layout.xaxis, layout.yaxis]) axis.gridcolor = axis.linecolor = "#d5dbe3"
  layout.title = { text: escaped(title), x: 0.02 }
  layout.margin = { l: 64, r: 24, t: 56, b: 56 }
  return figure
}

function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")
}

// One file that needs no server and no network: the library is in it.
async function page(figure, title) {
  const library = document.querySelector('script[src$="plotly.min.js"]').src
  const script = await (await fetch(library)).text()
  const json = JSON.stringify({ ...figure, config: { displaylogo: false, responsive: true } })
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${escaped(title)}</title></head>
<body style="margin: 0"><div id="chart" style="height: 100vh"></div>
<script>${script}</script>
<script>Plotly.newPlot("chart", ${json.replaceAll("<", "\\u003c")})</script></body></html>`
}

function download(text, name) {
  const link = document.createElement("a")
  link.href = URL.createObjectURL(new Blob([text], { type: "text/html" }))
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

async function save(format, { chart, title, file }) {
  const box = document.querySelector(`.st-key-${chart} .lab-plot`)
  if (!box?.data) return // not drawn yet
  const figure = printed(box, title)
  if (format === "html") return download(await page(figure, title), `${file}.html`)
  const names = figure.data.filter((line) => line.showlegend !== false && line.visible === true)
  const height = Math.max(LEAST_HEIGHT, 120 + ROW * names.length)
  await window.Plotly.downloadImage(figure, { format, width: WIDTH, height, filename: file })
}

export default function ({ data, parentElement }) {
  for (const button of parentElement.querySelectorAll("button")) {
    button.onclick = () => save(button.textContent.toLowerCase(), data)
  }
}
