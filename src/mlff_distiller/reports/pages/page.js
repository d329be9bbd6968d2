// What every page does: unpacks plotly, draws its plots, saves tables as CSV, and prints.
async function unpack(id) {
  const text = document.getElementById(id).textContent;
  const packed = new Blob([Uint8Array.from(atob(text), c => c.charCodeAt(0))]);
  const plain = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(plain).text();
  document.head.append(script);
}

function sayWhyNot() {
  document.querySelectorAll(".plot").forEach(plot => {
    plot.textContent = "This browser is too old to draw plots. Every number is in the tables.";
  });
}

function drawPlots(figures) {
  for (const [id, figure] of Object.entries(figures)) {
    Plotly.newPlot(id, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  }
  const plots = Array.from(document.querySelectorAll(".plot"));
  document.querySelectorAll("details").forEach(own => own.addEventListener("toggle", () => {
    own.querySelectorAll(".plot").forEach(plot => Plotly.Plots.resize(plot));
  }));
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

// On a narrow screen a table of many columns becomes a list, in which each cell names its column.
function labelCells(table) {
  const heads = Array.from(table.tHead.rows[0].cells, cell => cell.textContent.trim());
  if (heads.length <= 3 || table.classList.contains("checks")) return;
  table.classList.add("wide");
  for (const row of table.tBodies[0].rows) {
    Array.from(row.cells, (cell, k) => { cell.dataset.label = heads[k]; });
  }
}

function offerCsv() {
  for (const table of document.querySelectorAll("table[data-csv]")) {
    labelCells(table);
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
