// Shows generated texts: text nodes only, so that nothing in them can act as HTML.

function element(tag, name, text) {
  const made = document.createElement(tag)
  made.className = name
  made.textContent = text
  return made
}

export default function ({ data, parentElement }) {
  const list = parentElement.querySelector(".lab-texts")
  if (list.labShown === JSON.stringify(data)) return
  list.labShown = JSON.stringify(data)
  list.replaceChildren(
    ...data.map(({ heading, prompt, text }) => {
      const article = element("article", "", "")
      const body = element("div", "lab-text", "")
      body.append(element("b", "", prompt), text)
      article.append(element("h6", "", heading), body)
      return article
    }),
  )
}
