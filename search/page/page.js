(() => {
  "use strict";
  // One chart at a time; without this script all of them are there.
  const pick = document.querySelector(".pick");
  const charts = [...document.querySelectorAll(".chart[data-cost]")];
  const show = () => {
    const wanted = pick.querySelector("input:checked").value;
    for (const chart of charts) chart.hidden = chart.dataset.cost !== wanted;
  };
  if (pick) {
    pick.addEventListener("change", show);
    show();
  }
  // What a mark is, in words, for who has no pointer to rest on it.
  for (const chart of charts) {
    const readout = chart.querySelector(".readout");
    const tell = event => {
      const title = event.target.closest?.(".m")?.querySelector("title");
      if (title) readout.textContent = title.textContent;
    };
    chart.addEventListener("focusin", tell);
    chart.addEventListener("pointerover", tell);
  }
})();
