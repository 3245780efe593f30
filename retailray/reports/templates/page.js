// Tables that sort and filter, pictures that enlarge. Without it the page shows the same, once.
for (const table of document.querySelectorAll("table")) {
  const [head, ...rows] = table.rows;
  const isHead = head && [...head.cells].every((cell) => cell.tagName === "TH");
  if (!isHead || rows.length < 3) continue;
  [...head.cells].forEach((cell, column) => {
    if (!cell.textContent.trim()) return;
    const button = Object.assign(document.createElement("button"), { type: "button", className: "sort", textContent: "↕" });
    button.setAttribute("aria-label", `sort by ${cell.textContent.trim()}`);
    button.onclick = () => {
      const up = cell.getAttribute("aria-sort") !== "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = (row) => (row.cells[column] ? row.cells[column].textContent.trim() : "");
      const number = (row) => {
        const plain = text(row).replace(/[\u202f\s]/g, "").match(/^[^\d]{0,2}?([-+]?\d[\d.]*(e[-+]?\d+)?)/i);
        return plain ? parseFloat(plain[1]) : NaN;
      };
      const numeric = rows.every((row) => !/\d/.test(text(row)) || !isNaN(number(row))) && rows.some((row) => !isNaN(number(row)));
      const compare = (a, b) => {
        if (!numeric) return text(a).localeCompare(text(b), undefined, { numeric: true });
        const [x, y] = [number(a), number(b)];
        return isNaN(x) ? (isNaN(y) ? 0 : 1) : isNaN(y) ? -1 : x - y;
      };
      rows.sort((a, b) => (up ? compare(a, b) : compare(b, a))).forEach((row) => row.parentNode.append(row));
    };
    cell.append(" ", button);
  });
  if (rows.length < 12) continue;
  const input = Object.assign(document.createElement("input"), { type: "search", className: "filter", placeholder: "filter rows" });
  input.setAttribute("aria-label", "filter the rows of the table below");
  input.oninput = () => {
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(input.value.toLowerCase());
  };
  table.before(input);
}
// what scrolls can be scrolled by keyboard
const reachable = () => {
  for (const box of document.querySelectorAll("table, .chart")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
addEventListener("resize", reachable);
reachable();
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll("button.zoom")) {
  button.onclick = () => {
    const picture = button.querySelector("img");
    dialog.querySelector("img").src = picture.src;
    dialog.querySelector("img").alt = picture.alt;
    const list = dialog.querySelector("dl");
    list.replaceChildren();
    for (const [name, value] of Object.entries(JSON.parse(button.dataset.facts || "{}"))) {
      const [term, text] = ["dt", "dd"].map((tag) => document.createElement(tag));
      term.textContent = name;
      if (name === "address" && /^(https?:|\/)/.test(value)) {
        const href = value.startsWith("/") ? "file://" + value.split("/").map(encodeURIComponent).join("/") : value;
        text.append(Object.assign(document.createElement("a"), { href, textContent: value }));
      } else text.textContent = value;
      list.append(term, text);
    }
    dialog.showModal();
  };
}
if (dialog) dialog.onclick = (event) => event.target === dialog && dialog.close();
