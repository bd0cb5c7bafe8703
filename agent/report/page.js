"use strict";
for (const bar of document.querySelectorAll(".switch")) bar.hidden = false;

for (const button of document.querySelectorAll("[data-fold]")) {
  button.addEventListener("click", () => {
    for (const each of document.querySelectorAll(".turn details")) each.open = button.dataset.fold === "open";
  });
}

for (const table of document.querySelectorAll(".tasks")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;
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
    });
  });
}

const find = document.querySelector("#find");
if (find) {
  find.addEventListener("input", () => {
    const wanted = find.value.toLowerCase();
    let shown = 0;
    for (const row of document.querySelectorAll(".tasks tbody tr")) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    document.querySelector("#found").textContent = `${shown} shown`;
  });
}
