// The holders' page. It shows what the JSON API below /portal/api tells; texts of others (labels, model names,
// notes) become text nodes, never markup.
import { LANGUAGES, choose, currentLanguage, t } from "./words.js";

const API = "/portal/api/";
const head = document.getElementById("head");
const page = document.getElementById("page");
const dialog = document.getElementById("dialog");
let station = { name: "", sign_up: false };
let account = null; // null: not signed in
let shown = 0; // which view is being made: a late answer to an earlier one is dropped

// -- the API ------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function api(path, method = "GET", body = undefined) {
  let answer;
  try {
    answer = await fetch(API + path, {
      method,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
    });
  } catch {
    throw new Refused(0, t("The station does not answer. Try again shortly."));
  }
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  throw new Refused(answer.status, told.error?.message ?? `${answer.status}`);
}

// -- elements -----------------------------------------------------------------------------------------

/** h("a.soft", {href: "#keys", onclick: f}, "text", element, ...) */
function h(name, given = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  element.className = classes.join(" ");
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

function field(label, given = {}) {
  return h("label", {}, label, h("input", given));
}

function menu(given, options, chosen) {
  const list = options.map(([value, label]) => h("option", { value, selected: value === chosen }, label));
  return h("select", given, list);
}

function table(titles, rows, numbers = []) {
  if (!rows.length) return h("p.soft", {}, t("Nothing yet."));
  const kind = (name, at) => (numbers.includes(at) ? `${name}.number` : name);
  return h("div.table", {}, h("table", {},
    h("thead", {}, h("tr", {}, titles.map((title, at) => h(kind("th", at), {}, title)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, at) =>
      cell instanceof HTMLTableCellElement ? cell : h(kind("td", at), {}, cell)))))));
}

function facts(pairs) {
  return h("dl", {}, pairs.filter(([, value]) => value != null && value !== "").flatMap(([name, value]) =>
    [h("dt", {}, name), h("dd", {}, value)]));
}

/** A form whose button rests while `send(values)` is under way, and which shows what it was refused for. */
function form(parts, label, send, look = "form") {
  const alert = h("p.alert", { role: "alert" });
  const button = h("button.main", { type: "submit" }, label);
  const made = h(look, {}, parts, button, alert);
  made.addEventListener("submit", async (event) => {
    event.preventDefault();
    alert.textContent = "";
    button.disabled = true;
    try {
      await send(Object.fromEntries(new FormData(made)), made);
    } catch (error) {
      alert.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  });
  return made;
}

function section(title, ...children) {
  return h("section", {}, title && h("h2", {}, title), children);
}

function copier(text) {
  const button = h("button.small", { type: "button" }, t("Copy"));
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = t("Copied");
  });
  return button;
}

function open(...children) {
  dialog.replaceChildren(...children);
  dialog.showModal();
}

/** Ask, then do; the dialog stays while it is done and says what goes wrong. */
function confirmed(question, label, act) {
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, t("Cancel"));
  open(form([h("p", {}, question), cancel], label, act, "form.ask"));
}

// -- what is shown how --------------------------------------------------------------------------------

/** Amounts come as exact decimal texts and are shown to a few places; a bill's detail shows all. */
function cut(text, places) {
  const [whole, part = ""] = text.split(".");
  const short = part.slice(0, places).replace(/0+$/, "");
  const isLess = /[1-9]/.test(part.slice(places));
  return `${whole}${short ? `.${short}` : ""}${isLess ? "…" : ""}`;
}

function money(text, currency = account.currency) {
  return `${cut(text, 6)} ${currency}`;
}

function time(ms) {
  return new Date(ms).toLocaleString(currentLanguage(), { dateStyle: "short", timeStyle: "medium" });
}

function count(number) {
  return number.toLocaleString(currentLanguage());
}

function mirrorText(mirror) {
  return Array.isArray(mirror) ? mirror.join(", ") : mirror === "auto" ? t("auto") : mirror;
}

function mirrorMenu(given, mirror) {
  const single = ["auto", ...account.mirrors];
  const value = Array.isArray(mirror) ? mirror.join(",") : mirror;
  if (!single.includes(value)) single.push(value);
  return menu(given, single.map((name) => [name, mirrorText(name.includes(",") ? name.split(",") : name)]), value);
}

function mirrorOf(value) {
  return value.includes(",") ? value.split(",") : value;
}

// -- signed out ---------------------------------------------------------------------------------------

function signIn() {
  const enter = async ({ name, password }) => {
    await api("login", "POST", { name, password });
    await begin();
  };
  page.replaceChildren(h("section.narrow", {}, h("h1", {}, t("Sign in")),
    form([
      field(t("Name"), { name: "name", autocomplete: "username", required: true, autofocus: true }),
      field(t("Password"), { name: "password", type: "password", autocomplete: "current-password", required: true }),
    ], t("Sign in"), enter),
    station.sign_up && h("p", {}, h("button.link", { type: "button", onclick: signUp }, t("Create an account")))));
}

function signUp() {
  const enter = async (values) => {
    await api("signup", "POST", values);
    await begin();
  };
  page.replaceChildren(h("section.narrow", {}, h("h1", {}, t("Create an account")),
    form([
      field(t("Name"), { name: "name", autocomplete: "username", required: true }),
      field(t("Password"), { name: "password", type: "password", autocomplete: "new-password", required: true }),
      field(t("Contact (optional)"), { name: "contact", autocomplete: "email" }),
    ], t("Create an account"), enter),
    h("p", {}, h("button.link", { type: "button", onclick: signIn }, t("I have an account")))));
}

async function signOut() {
  await api("logout", "POST", {});
  account = null;
  show();
}

// -- overview -----------------------------------------------------------------------------------------

async function overview() {
  const { data } = await api("receipts?limit=5");
  const card = (title, ...figure) => h("section", {}, h("div.soft", {}, title), h("div.figure", {}, figure));
  const sum = (text) => [cut(text, 4), " ", h("small", {}, account.currency)];
  const tiers = account.tiers.filter(({ tier }) => tier).map(({ tier, until_ms }) =>
    h("div", {}, tier, until_ms && h("small", {}, " ", t("until {time}", { time: time(until_ms) }))));
  const url = account.endpoints[0]?.url ?? location.origin;
  const first = `curl ${url}/v1/models -H "Authorization: Bearer sk-..."`;
  return [
    h("h1", {}, account.account),
    h("div.cards", {},
      card(t("Available"), ...sum(account.available)),
      card(t("Balance"), ...sum(account.balance)),
      account.free !== "0" && card(t("Free quota"), ...sum(account.free)),
      account.held !== "0" && card(t("Held for calls"), ...sum(account.held)),
      tiers.length > 0 && card(t("Tier"), ...tiers)),
    section(t("Base URLs"),
      table([t("Address"), t("Region"), ""], account.endpoints.map((e) => [
        h("td", {}, h("code", {}, `${e.url}/v1`), e.label && h("div.soft", {}, e.label)),
        e.region, h("td.actions", {}, copier(`${e.url}/v1`)),
      ])),
      h("pre", { title: t("A first call") }, first)),
    section(t("Latest calls"), lines(data)),
  ];
}

// -- keys ---------------------------------------------------------------------------------------------

function shownOnce(key) {
  open(h("h2", {}, t("Your new key")),
    h("p.note", {}, t("It is shown this once. Keep it where nobody else reads it.")),
    h("p.row", {}, h("code", { id: "new-key" }, key), copier(key)),
    h("div.row.end", {}, h("button.main", { type: "button", onclick: () => dialog.close() }, t("Done"))));
  dialog.addEventListener("close", () => dialog.replaceChildren(), { once: true });
}

async function keys() {
  const { data } = await api("keys");
  const create = async ({ label, models, mirror }) => {
    const names = models.split(",").map((name) => name.trim()).filter(Boolean);
    const wish = { label, mirror: mirrorOf(mirror), models: names.length ? names : null };
    const made = await api("keys", "POST", wish);
    await show();
    shownOnce(made.key);
  };
  const isOpen = account.status === "active";
  return [
    h("h1", {}, t("Keys")),
    isOpen && section(t("New key"), form([
      field(t("Label"), { name: "label", maxlength: 100, autocomplete: "off" }),
      field(t("Models, separated by commas (optional)"), { name: "models", placeholder: t("All models"), autocomplete: "off" }),
      h("label", {}, t("Mirror"), mirrorMenu({ name: "mirror" }, "auto")),
    ], t("Create"), create, "form.line")),
    section("", table(
      [t("Key"), t("Label"), t("Models"), t("Mirror"), t("State"), ""],
      data.slice().reverse().map((key) => keyRow(key, isOpen)),
    )),
  ];
}

function keyRow(key, isOpen) {
  const path = `keys/${key.key_id}`;
  const name = key.label || key.masked;
  const mayChange = isOpen && key.status === "active";
  const rename = () => open(form([field(t("Label"), { name: "label", value: key.label, maxlength: 100 })], t("Save"),
    async ({ label }) => {
      await api(path, "PATCH", { label });
      dialog.close();
      await show();
    }));
  const rotate = () => confirmed(t("Rotate “{key}”? The old key is refused at once.", { key: name }), t("Rotate"),
    async () => {
      const made = await api(`${path}/rotate`, "POST", {});
      dialog.close();
      await show();
      shownOnce(made.key);
    });
  const revoke = () => confirmed(t("Revoke “{key}”? It cannot be undone.", { key: name }), t("Revoke"), async () => {
    await api(path, "DELETE");
    dialog.close();
    await show();
  });
  const steer = (event) => api(path, "PATCH", { mirror: mirrorOf(event.target.value) }).catch(complain);
  return [
    h("td", {}, h("code", {}, key.masked)),
    key.label,
    key.models ? key.models.join(", ") : t("All models"),
    mayChange ? mirrorMenu({ onchange: steer, "aria-label": t("Mirror") }, key.mirror) : mirrorText(key.mirror),
    h(key.status === "active" ? "span.good" : "span.soft", {}, t(key.status)),
    h("td.actions", {}, mayChange && h("span.row", {},
      h("button.small", { type: "button", onclick: rename }, t("Rename")),
      h("button.small", { type: "button", onclick: rotate }, t("Rotate")),
      h("button.small.bad", { type: "button", onclick: revoke }, t("Revoke")))),
  ];
}

// -- bill ---------------------------------------------------------------------------------------------

const KINDS = { topup: "Top-up", code: "Redeemed code", trial: "Trial credit", adjustment: "Adjustment",
  refund: "Refund", chargeback: "Chargeback", correction: "Correction" };

function titleOf(line) {
  return line.object === "receipt" ? line.model || line.operation : t(KINDS[line.object] ?? line.object);
}

function lines(data) {
  return table(
    [t("Time"), t("What"), t("Tokens in / out"), t("Cost"), t("Amount"), ""],
    data.map((line) => [
      time(line.ended_ms),
      titleOf(line),
      line.prompt_tokens == null ? "" : `${count(line.prompt_tokens)} / ${count(line.completion_tokens)}`,
      line.cost == null ? "" : money(line.cost, line.currency),
      money(line.amount, line.currency),
      h("td.actions", {}, h("button.small", { type: "button", onclick: () => detail(line) }, t("Receipt"))),
    ]),
    [2, 3, 4],
  );
}

function detail(line) {
  const ms = (value) => (value == null || value < 0 ? null : `${count(value)} ms`);
  const items = (line.items ?? []).map((item) =>
    [item.bucket, count(item.count), `${item.price} / ${count(item.per)}`, item.amount]);
  open(h("h2", {}, titleOf(line)),
    items.length > 0 && table([t("Usage"), "", t("Price"), t("Amount")], items, [1, 2, 3]),
    facts([
      [t("Multipliers"), line.model_multiplier && `${line.model_multiplier} × ${line.tier_multiplier} (${line.tier})`],
      [t("Cost"), line.cost && `${line.cost} ${line.currency}`],
      [t("Paid from free quota"), line.free ? `${line.free_amount} ${line.currency}` : null],
      [t("Amount"), `${line.amount} ${line.currency}`],
      [t("Upload"), ms(line.rurt_ms)], [t("First byte"), ms(line.ttft_ms)], [t("Duration"), ms(line.took_ms)],
      [t("Mirror"), line.mirror], [t("Reference"), line.reference], [t("Time"), time(line.ended_ms)],
      ["id", h("code", {}, line.id)],
    ]),
    h("div.row.end", {}, h("button", { type: "button", onclick: () => dialog.close() }, t("Close"))));
}

async function bill() {
  const span = new URLSearchParams();
  const found = h("div");
  const csv = h("a", { download: "receipts.csv" }, t("Save as CSV"));
  const load = async (cursor) => {
    const query = new URLSearchParams(span);
    query.set("limit", "50");
    if (cursor) query.set("cursor", cursor);
    const told = await api(`receipts?${query}`);
    csv.href = `${API}receipts?${new URLSearchParams([...span, ["format", "csv"], ["limit", "1000"]])}`;
    const more = h("button", { type: "button" }, t("Older"));
    more.addEventListener("click", () => load(told.next).then(() => more.remove(), complain));
    found.append(...[lines(told.data), told.next && more].filter(Boolean));
  };
  const narrow = async (values) => {
    for (const name of ["from", "to"]) values[name] ? span.set(name, values[name]) : span.delete(name);
    found.replaceChildren();
    await load();
  };
  await load();
  return [
    h("h1", {}, t("Bill")),
    section("", form([field(t("From"), { name: "from", type: "date" }), field(t("To"), { name: "to", type: "date" })],
      t("Show"), narrow, "form.line")),
    section("", found, h("p", {}, csv)),
  ];
}

// -- money --------------------------------------------------------------------------------------------

async function topUp() {
  const [orders, payments] = await Promise.all([api("orders"), api("payments")]);
  const cameBack = location.search.length > 1; // a gateway has sent its customer back
  const redeem = async ({ code }, made) => {
    const told = await api("codes", "POST", { code: code.trim() });
    await refresh();
    made.reset();
    const words = "{amount} {currency} were added.";
    open(h("p", {}, told.is_new ? t(words, { amount: told.amount, currency: account.currency })
      : t("This code was redeemed by you before.")),
    h("div.row.end", {}, h("button.main", { type: "button", onclick: () => { dialog.close(); show(); } }, t("Done"))));
  };
  const order = async ({ gateway, amount }) => {
    const made = await api("orders", "POST", { gateway, amount });
    await show();
    open(h("h2", {}, t("Your order {order} is ready.", { order: made.order })),
      facts([[t("Amount"), `${made.price} ${made.currency}`]]),
      !made.pay_url && h("p.note", {}, t("Name this order to pay: {order}", { order: made.order })),
      h("div.row.end", {}, h("button", { type: "button", onclick: () => dialog.close() }, t("Close")),
        made.pay_url && h("button.main", { type: "button", onclick: () => location.assign(made.pay_url) }, t("Pay"))));
  };
  return [
    h("h1", {}, t("Top up")),
    cameBack && h("p.note", { role: "status" }, t("Thank you. A payment shows up here as soon as it is confirmed.")),
    section(t("Redeem a code"), form([field(t("Code"), { name: "code", required: true, autocomplete: "off" })],
      t("Redeem"), redeem, "form.line")),
    account.gateways.length > 0 && section(t("Pay online"), form([
      h("label", {}, t("Way of payment"), menu({ name: "gateway" }, account.gateways.map((name) => [name, name]))),
      field(`${t("Amount")} (${account.currency})`, { name: "amount", required: true, inputmode: "decimal", pattern: "[0-9]+([.][0-9]+)?" }),
    ], t("Continue"), order, "form.line")),
    orders.data.length > 0 && section(t("Orders"), table([t("Reference"), t("Amount"), t("To pay"), t("State")],
      orders.data.map((o) => [h("code", {}, o.order), money(o.amount), `${o.price} ${o.currency}`,
        o.paid ? h("span.good", {}, t("paid")) : h("span.soft", {}, t("not paid yet"))]), [1, 2])),
    section(t("Payments"), table([t("Time"), t("What"), t("Reference"), t("Amount")],
      payments.data.map((p) => [time(p.posted_ms), t(KINDS[p.kind] ?? p.kind), h("code", {}, p.reference), money(p.amount)]), [3])),
  ];
}

// -- account ------------------------------------------------------------------------------------------

async function settings() {
  const saved = (made, words) => made.append(h("p.good", { role: "status" }, t(words)));
  const steer = async ({ mirror }, made) => {
    account = await api("account", "PATCH", { mirror: mirrorOf(mirror) });
    saved(made, "Saved.");
  };
  const change = async (values, made) => {
    await api("password", "POST", { old: values.old, new: values.new });
    made.reset();
    saved(made, "All other sessions were ended.");
  };
  return [
    h("h1", {}, t("Account")),
    account.status === "active" && section(t("Mirror"), form([
      h("label", {}, t("Mirror for all keys that say “auto”"), mirrorMenu({ name: "mirror" }, account.mirror)),
    ], t("Save"), steer, "form.line")),
    section(t("Change the password"), form([
      h("input", { name: "name", autocomplete: "username", value: account.account, hidden: true }),
      field(t("Present password"), { name: "old", type: "password", autocomplete: "current-password", required: true }),
      field(t("New password"), { name: "new", type: "password", autocomplete: "new-password", required: true }),
    ], t("Change"), change, "form.line")),
  ];
}

// -- the page -----------------------------------------------------------------------------------------

const VIEWS = { overview: ["Overview", overview], keys: ["Keys", keys], bill: ["Bill", bill],
  money: ["Top up", topUp], account: ["Account", settings] };

function viewName() {
  const named = location.hash.slice(1);
  if (named in VIEWS) return named;
  return location.search.length > 1 ? "money" : "overview";
}

function heading() {
  const speak = menu({ "aria-label": "Language", onchange: (event) => { choose(event.target.value); show(); } },
    Object.entries(LANGUAGES), currentLanguage());
  const link = ([name, [title]]) =>
    h("a", { href: `#${name}`, "aria-current": name === viewName() && "page" }, t(title));
  document.documentElement.lang = currentLanguage();
  document.title = station.name;
  head.replaceChildren(h("strong", {}, station.name), h("nav", {}, account ? Object.entries(VIEWS).map(link) : []),
    h("div.who", {}, speak, account ? h("button", { type: "button", onclick: () => signOut().catch(complain) }, t("Sign out")) : ""));
}

function complain(error) {
  if (error.status === 401) {
    account = null;
    show();
    return;
  }
  page.prepend(h("p.alert", { role: "alert" }, error.message));
}

async function refresh() {
  account = await api("account");
}

async function show() {
  const mine = ++shown;
  heading();
  if (account === null) {
    signIn();
    return;
  }
  try {
    const made = await VIEWS[viewName()][1]();
    if (mine !== shown) return;
    const notice = account.status !== "active" &&
      h("p.note", {}, t("This account is {status}: you can look, but not change anything.", { status: t(account.status) }));
    page.replaceChildren(...[notice, ...made].filter(Boolean));
  } catch (error) {
    if (mine === shown) {
      page.replaceChildren();
      complain(error);
    }
  }
}

/** Who is there? Then what was asked for. */
async function begin() {
  try {
    await refresh();
  } catch (error) {
    if (error.status !== 401) throw error;
    account = null;
  }
  await show();
}

window.addEventListener("hashchange", () => refresh().then(show, complain));
station = await api("station").catch(() => station);
await begin().catch(complain);
