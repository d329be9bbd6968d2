// What every page of a validation does: draws its plots, saves tables as CSV, and prints.
function drawPlots(figures) {
  for (const [id, figure] of Object.entries(figures)) {
    Plotly.newPlot(id, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  }
  const plots = Array.from(document.querySelectorAll(".plot"));
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach(own => { own.open = true; });
    plots.forEach(plot => {
      const columns = plot.closest(".columns-3") ? 3 : plot.closest(".columns-1") ? 1 : 2;
      const inside = 1240 - 2 * (40 + 1 + 30);
      Plotly.relayout(plot, { width: (inside - 28 * (columns - 1)) / columns });
    });
  });
  addEventListener("afterprint", () => plots.forEach(
    plot => Plotly.relayout(plot, { width: null, autosize: true })));
}

// A cell as CSV. A spreadsheet takes text that begins with = + - @ for a formula, unless it is
// quoted with an apostrophe; numbers stay as they are.
function csvCell(text) {
  const number = text.trim() !== "" && Number.isFinite(Number(text));
  const safe = !number && /^[=+\-@\t\r]/.test(text) ? "'" + text : text;
  return /[",\r\n]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

function csvOf(table) {  // exact numbers, where the page shows rounded ones
  const exact = cell => {
    const data = cell.querySelectorAll("data");
    return data.length === 1 ? data[0].value : cell.textContent.trim().replace(/\s+/g, " ");
  };
  return Array.from(table.rows, row => Array.from(row.cells, cell => csvCell(exact(cell))).join(","))
    .join("\r\n") + "\r\n";
}

function offerCsv() {
  for (const table of document.querySelectorAll("table[data-csv]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "csv";
    button.textContent = "Save as CSV";
    button.setAttribute("aria-label", `Save the table ${table.dataset.csv} as CSV`);
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(["\ufeff", csvOf(table)], { type: "text/csv" }));
      link.download = table.dataset.csv + ".csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    table.parentElement.after(button);
  }
}
