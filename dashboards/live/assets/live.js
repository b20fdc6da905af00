"use strict";
// What the browser does by itself: what is looked at goes into the address of the page.
window.dash_clientside ??= {};

// Dash calls its boxes options of a list that has no name; they are boxes with labels in a group.
new MutationObserver(() => {
  for (const list of document.querySelectorAll(".dash-options-list[role=listbox]")) {
    list.removeAttribute("role");
  }
  for (const option of document.querySelectorAll("label[aria-selected]")) {
    option.removeAttribute("role");
    option.removeAttribute("aria-selected");
  }
}).observe(document.documentElement, {
  subtree: true, childList: true, attributes: true, attributeFilter: ["aria-selected"],
});

function settle(pairs) {
  const query = new URLSearchParams(pairs.map(([name, value]) => [name, String(value)])).toString();
  history.replaceState(history.state, "", query ? "?" + query : location.pathname);
  return query ? "?" + query : "";
}

let moves = 0;

window.dash_clientside.live = {
  async choose(tab, budget, outcomes, losses, lows, highs, words, trial,
         most, allOutcomes, allLosses, spans, named, allWords) {
    // While the slider moves nothing is asked for.
    const move = ++moves;
    await new Promise((resolve) => setTimeout(resolve, 100));
    if (move !== moves) return window.dash_clientside.no_update;
    const pairs = [];
    const some = (name, chosen, options) => {
      if (chosen.length < options.length) for (const one of chosen) pairs.push([name, one]);
    };
    if (tab !== "front") pairs.push(["tab", tab]);
    if (budget != null && Number(budget) < most) pairs.push(["budget", Math.round(budget)]);
    some("outcome", outcomes, allOutcomes);
    some("loss", losses, allLosses);
    spans.forEach(({ name }, i) => {
      const ends = [lows[i] ?? "", highs[i] ?? ""];
      if (ends[0] !== "" || ends[1] !== "") pairs.push(["p." + name, ends.join("..")]);
    });
    named.forEach(({ name }, i) => some("w." + name, words[i], allWords[i]));
    if (trial != null) pairs.push(["trial", trial]);
    return settle(pairs);
  },

  pick(clicked, opened, found) {
    const { triggered } = window.dash_clientside.callback_context;
    for (const { prop_id: id, value } of triggered) {
      if (value == null) continue;
      if (id.endsWith(".clickData")) return value.points[0].customdata ?? window.dash_clientside.no_update;
      if (id.endsWith(".n_clicks")) return JSON.parse(id.slice(0, id.lastIndexOf("."))).trial;
      return value;
    }
    return window.dash_clientside.no_update;
  },

  close(clicks) {
    return clicks ? null : window.dash_clientside.no_update;
  },

  copy(clicks, command) {
    if (!clicks) return window.dash_clientside.no_update;
    navigator.clipboard?.writeText(command);
    return "Copied";
  },

  compare(chosen) {
    settle(chosen.map((name) => ["study", name]));
    return window.dash_clientside.no_update;
  },
};
