"use strict";
for (const bar of document.querySelectorAll(".switch")) bar.hidden = false;

for (const button of document.querySelectorAll("[data-fold]")) {
  button.addEventListener("click", () => {
    for (const each of document.querySelectorAll(".turn details")) each.open = button.dataset.fold === "open";
  });
}

const table = document.querySelector(".tasks");
if (table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const find = document.querySelector("#find");
  const more = document.querySelector("#more");
  const key = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const words = new Map([...body.rows].map((row) => [row, row.textContent.toLowerCase()]));
  let most = 500; // laying out ten thousand rows takes seconds

  const show = () => {
    const wanted = find.value.toLowerCase();
    let found = 0;
    for (const row of body.rows) {
      const fits = words.get(row).includes(wanted);
      found += fits ? 1 : 0;
      row.hidden = !fits || found > most;
    }
    more.hidden = found <= most;
    document.querySelector("#found").textContent = more.hidden ? `${found} shown` : `${most} of ${found} shown`;
  };

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const numbers = head.classList.contains("number");
      // Numbers begin with the greatest: that is what one looks for.
      const before = head.getAttribute("aria-sort");
      const up = before === null ? !numbers : before === "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => (numbers ? key(a, column) - key(b, column) : key(a, column).localeCompare(key(b, column)));
      body.append(...[...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a))));
      show();
    });
  });
  find.addEventListener("input", show);
  more.addEventListener("click", () => {
    most = Infinity;
    show();
  });
  show();
}
