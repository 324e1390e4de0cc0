// Sorting, searching and filtering of the report's tables by DataTables. Without scripts the report reads completely.
"use strict";
(() => {
  const DELAY = 150; // milliseconds after the last key
  const NEAR = "300px"; // distance from the window at which a table becomes sortable
  const NO_CONTROLS = { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null };
  const NOTHING_FOUND = { claims: "No claim of this paper matches.", runs: "No run matches.", sortable: "" };
  DataTable.ext.errMode = "throw";

  // A table becomes a DataTable when it is near the window, or when it is searched: thousands of rows take seconds.
  const made = new Map();
  const tableOf = (element) => {
    if (!made.has(element)) {
      const language = { zeroRecords: NOTHING_FOUND[element.classList[0]] };
      const options = { paging: false, info: false, autoWidth: false, order: [], layout: NO_CONTROLS, language };
      made.set(element, new DataTable(element, options));
    }
    return made.get(element);
  };
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        observer.unobserve(entry.target);
        tableOf(entry.target);
      }
    }
  }, { rootMargin: NEAR });
  const all = [...document.querySelectorAll("table.sortable, table.claims, table.runs")];
  all.forEach((element) => observer.observe(element));

  const delayed = (work) => {
    let timer;
    return () => { clearTimeout(timer); timer = setTimeout(work, DELAY); };
  };
  const shownOf = (shown, total, what) => `${shown.toLocaleString("en")} of ${total.toLocaleString("en")} ${what}`;
  // Search one table: words that a row must contain, and a test of its data attributes. Returns the rows shown.
  const search = (element, words, accepts) => {
    const table = tableOf(element);
    table.search(words);
    table.search.fixed("fields", (_text, _cells, index) => accepts(table.row(index).node().dataset));
    table.draw();
    return table.rows({ search: "applied" }).count();
  };
  const prepare = (form, work, onReset) => {
    form.hidden = false;
    form.addEventListener("input", delayed(work));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => { onReset(); setTimeout(work); });
  };

  // Claims: one filter for all tables of the page. Those of the summary have no filter.
  const claimForm = document.querySelector("form.claim-filter");
  const claims = all.filter((element) => element.matches("section table.claims"));
  const filterClaims = () => {
    const { text, kind, outcome, tested } = claimForm.elements;
    const accepts = (row) => (!kind.value || row.kind === kind.value)
      && (!outcome.value || row.outcome === outcome.value) && (!tested.checked || row.tested === "yes");
    let total = 0, shown = 0;
    for (const element of claims) {
      shown += search(element, text.value, accepts);
      total += tableOf(element).rows().count();
    }
    claimForm.querySelector("output").textContent = shownOf(shown, total, "claims");
  };
  if (claimForm) prepare(claimForm, filterClaims, () => {});

  // Runs: a search, and the runs behind one number.
  const runForm = document.querySelector("form.run-filter");
  const runs = document.querySelector("table.runs");
  let behind = new Set();
  const filterRuns = () => {
    const shown = search(runs, runForm.elements.text.value, (row) => !behind.size || behind.has(row.identity));
    const what = behind.size ? "runs, those behind the number" : "runs";
    runForm.querySelector("output").textContent = shownOf(shown, tableOf(runs).rows().count(), what);
  };
  const showBehind = (identities) => {
    behind = new Set(identities);
    runForm.elements.text.value = "";
    filterRuns();
  };
  if (runs) {
    prepare(runForm, filterRuns, () => { behind = new Set(); });
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-runs]");
      if (link && link.getAttribute("href").startsWith("#")) showBehind(link.dataset.runs.split(" "));
    });
    const asked = new URLSearchParams(location.search).get("runs");
    if (asked) showBehind(asked.split(" "));
  }

  // A link to a row that is filtered out shows all rows.
  const reveal = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    document.querySelectorAll("tr.shown").forEach((row) => row.classList.remove("shown"));
    if (!id) return;
    if (!document.getElementById(id)) {
      for (const form of [claimForm, runForm]) if (form) form.reset();
    }
    setTimeout(() => {
      const target = document.getElementById(id);
      if (!target) return;
      if (target.tagName === "TR") target.classList.add("shown");
      target.scrollIntoView({ block: target.tagName === "TR" ? "center" : "start" });
    });
  };
  addEventListener("hashchange", reveal);
  reveal();

  const openAll = () => document.querySelectorAll("details").forEach((one) => { one.open = true; });
  addEventListener("beforeprint", openAll);
  document.documentElement.dataset.ready = "yes"; // for tests
})();
