// Saves the file that the page has just made; each address once, however often the page is drawn.

const saved = new Set()

export default function ({ data }) {
  if (!data || saved.has(data)) return
  saved.add(data)
  const link = document.createElement("a")
  link.href = new URL(data, document.baseURI).href
  link.download = ""
  link.click()
}
