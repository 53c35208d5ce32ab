(() => {
  "use strict";
  document.documentElement.classList.add("js");

  // The table of the sweep is the data: a slider picks a row, nothing is computed here.
  const panel = document.getElementById("roofline");
  const sliders = panel ? [...panel.querySelectorAll("input[type=range]")] : [];
  const rows = {};
  if (panel) for (const row of panel.querySelectorAll("tr[data-at]")) rows[row.dataset.at] = row;
  const show = () => {
    const at = sliders.map(slider => {
      const value = slider.dataset.steps.split(" ")[slider.value];
      slider.setAttribute("aria-valuetext", value);
      document.getElementById(slider.id + "-value").textContent = value;
      return value;
    });
    const row = rows[at.join(" ")];
    for (const other of Object.values(rows)) other.removeAttribute("aria-current");
    row.setAttribute("aria-current", "true");
    for (const cell of row.querySelectorAll("td[data-to]"))
      document.getElementById(cell.dataset.to).replaceChildren(...cell.cloneNode(true).childNodes);
    for (const stage of ["prefill", "decode"]) {
      const [x, y, low, high] = row.dataset[stage].split(" ");
      const mark = document.getElementById("point-" + stage);
      mark.setAttribute("transform", `translate(${x} ${y})`);
      mark.querySelector("line").setAttribute("y1", low);
      mark.querySelector("line").setAttribute("y2", high);
    }
  };
  for (const slider of sliders) slider.addEventListener("input", show);
  if (sliders.length) show();

  // Tables whose heads are buttons sort by their numbers, smallest first, then largest.
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), body = button.closest("table").tBodies[0];
      const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const key = row => Number(row.cells[head.cellIndex].querySelector("data")?.value ?? Infinity);
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", turn === 1 ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => turn * (key(a) - key(b))));
    });
  }

  // On paper everything is open.
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
