"use strict";
(() => {
  const all = (from, what) => Array.from(from.querySelectorAll(what));
  const words = (element) => (element.found ??= element.textContent.toLowerCase());

  const search = (section, items) => {
    const box = section.querySelector(".search");
    const told = section.querySelector(".told");
    const show = () => {
      const asked = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const item of items) {
        const fits = asked.every((word) => words(item).includes(word));
        item.hidden = !fits;
        shown += fits;
      }
      told.textContent = `${shown} of ${items.length} shown`;
    };
    box.addEventListener("input", show);
    show();
  };

  for (const section of all(document, ".galleries")) {
    search(section, all(section, ".cards > .card"));
    const order = section.querySelector(".order");
    const lists = all(section, ".cards").map((list) => [list, all(list, ":scope > .card")]);
    order.addEventListener("change", () => {
      const [key, way] = order.value.split(" ");
      const value = (card) => (key in card.dataset ? Number(card.dataset[key]) : Infinity);
      for (const [list, cards] of lists) {
        const sorted = key === "given" ? cards : [...cards].sort((a, b) =>
          way === "down" ? (key in b.dataset ? value(b) : -Infinity) - (key in a.dataset ? value(a) : -Infinity) : value(a) - value(b));
        list.append(...sorted);
      }
    });
  }

  const cell = (text) => `"${String(text).replaceAll('"', '""')}"`;
  for (const section of all(document, ".deciding")) {
    const rows = all(section, "tbody tr");
    search(section, rows);
    const told = section.querySelector(".decided");
    const decisions = () => rows.map((row) => [row, row.querySelector("select").value]);
    const count = () => {
      const made = decisions().filter(([, choice]) => choice !== "open").length;
      told.textContent = `${made} of ${rows.length} decided`;
    };
    section.addEventListener("change", count);
    count();
    section.querySelector("button").addEventListener("click", () => {
      const lines = [["uid", "given_label", "likely_label", "decision", "new_label"].join(",")];
      for (const [row, choice] of decisions()) {
        const set = choice.startsWith("label ") ? row.querySelector("select").selectedOptions[0].dataset.label : "";
        const decision = choice.startsWith("label ") ? "change" : choice;
        lines.push([row.dataset.uid, cell(row.dataset.given), cell(row.dataset.likely), decision, cell(set)].join(","));
      }
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
      link.download = "decisions.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
})();
