"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const cards = [...document.querySelectorAll("article")];
  const byId = new Map(cards.map((card) => [card.dataset.id, card]));
  // where scenes overlap, a footprint is drawn on both
  const outlines = new Map(cards.map((card) => [card.dataset.id, []]));
  for (const link of document.querySelectorAll(".map a")) {
    outlines.get(link.getAttribute("href").slice(3))?.push(link.firstElementChild);
  }
  const [save, count, told, filter] = ["save", "count", "told", "filter"].map((id) => document.getElementById(id));
  const draftKey = `rtsmap-review:${facts.plan_sha256}:${facts.map}`;
  const touched = new Set();
  let saved = true;

  const commentOf = (card) => card.querySelector("textarea");
  const verdictOf = (card) => card.dataset.review || null;

  function show(card) {
    for (const button of card.querySelectorAll("[data-verdict]")) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === verdictOf(card)));
    }
    for (const outline of outlines.get(card.dataset.id)) {
      outline.classList.toggle("rejected", verdictOf(card) === "rejected");
    }
  }

  function showAll() {
    const decided = cards.filter(verdictOf).length;
    count.textContent = `${decided} of ${cards.length} decided`;
    save.disabled = touched.size === 0;
    for (const card of cards) {
      const wanted = filter.value === "all" || filter.value === (verdictOf(card) ?? "open");
      card.hidden = !wanted;
    }
  }

  function review() {
    const rows = [...touched].map((id) => {
      const card = byId.get(id);
      return { id, review: verdictOf(card), comment: commentOf(card).value };
    });
    return { ...facts, saved_utc: new Date().toISOString(), reviews: rows };
  }

  function changed(card) {
    touched.add(card.dataset.id);
    saved = false;
    told.textContent = "";
    show(card);
    try {
      localStorage.setItem(draftKey, JSON.stringify(review()));
    } catch { /* the draft is a convenience; the saved file is the record */ }
  }

  function decide(card, verdict) {
    card.dataset.review = verdictOf(card) === verdict ? "" : verdict;
    changed(card);
    count.textContent = `${cards.filter(verdictOf).length} of ${cards.length} decided`;
    save.disabled = false;
  }

  function take(document_) {
    if (document_?.format !== facts.format || !Array.isArray(document_.reviews)) {
      throw new Error("this file is no review of rtsmap");
    }
    let known = 0;
    for (const row of document_.reviews) {
      const card = byId.get(row.id);
      if (!card) continue;
      known += 1;
      card.dataset.review = ["accepted", "rejected"].includes(row.review) ? row.review : "";
      commentOf(card).value = typeof row.comment === "string" ? row.comment : "";
      touched.add(row.id);
      show(card);
    }
    showAll();
    return `${known} of ${document_.reviews.length} taken over`;
  }

  for (const card of cards) {
    show(card);
    card.addEventListener("click", (event) => {
      const button = event.target.closest("[data-verdict]");
      if (button) decide(card, button.dataset.verdict);
    });
    commentOf(card).addEventListener("input", () => { changed(card); save.disabled = false; });
    card.addEventListener("keydown", (event) => {
      if (event.target !== card || event.ctrlKey || event.metaKey || event.altKey) return;
      const verdict = { a: "accepted", r: "rejected" }[event.key];
      if (verdict) decide(card, verdict);
    });
  }

  save.addEventListener("click", () => {
    const blob = new Blob([JSON.stringify(review(), null, 1)], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${facts.map.replace(/\.[^.]*$/, "")}_review.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    saved = true;
    told.textContent = `${touched.size} saved; write them into the map with rtsmap review apply`;
  });

  document.getElementById("load").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    try {
      told.textContent = take(JSON.parse(await file.text()));
    } catch (error) {
      told.textContent = `cannot be loaded: ${error.message}`;
    }
    event.target.value = "";
  });

  filter.addEventListener("change", showAll);
  for (const box of document.querySelectorAll(".switch input")) {
    box.addEventListener("change", () => box.closest(".map").classList.toggle("with-relief", box.checked));
  }
  window.addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });

  try {
    const draft = localStorage.getItem(draftKey);
    if (draft) told.textContent = `draft: ${take(JSON.parse(draft))}`;
  } catch { /* no storage for this page */ }
  showAll();
})();
