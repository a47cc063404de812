// The page itself. What a model or a user said is put in as text, never as HTML: the page's policy refuses that too.
import { curl, events, headersOf, heard, keyId, problem, request, send, skeleton, until } from "./api.js";

const $ = id => document.getElementById(id);
const on = (id, event, does) => $(id).addEventListener(event, does);
const root = new URL(document.documentElement.dataset.root, location.origin + location.pathname);
const VIEWS = { usage: look, chat: openChat, skills: openSkills, sessions: () => list() };
const EVERY = 15_000;

let key = ""; // here and nowhere else: no storage, no cookie, no address
const known = { models: false, skills: null, sessions: [], next: null };
let stopping = null; // aborts the chat that runs

// --- small things ------------------------------------------------------------------------------
function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
}

const when = iso => new Date(iso).toLocaleString();
const pretty = value => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

/** Say something, also to those who do not see the page. */
const say = text => { $("said").textContent = text; };

function complain(part, { status = "", code = "", message, problems = [], requestId, retryAfter, resetsAt }) {
    const lines = problems.length > 1 ? [...problems] : [message];
    const at = retryAfter && new Date(Date.now() + retryAfter * 1000).toLocaleTimeString();
    if (retryAfter) lines.push(`Try again in ${retryAfter} s, at ${at}.`);
    else if (resetsAt) lines.push(`The limit is free again ${until(resetsAt, Date.now())}, at ${when(resetsAt)}.`);
    if (requestId) lines.push(`Request id: ${requestId}`);
    const title = `${status} ${code}`.trim() || "It did not work";
    part.querySelector(".error").replaceChildren(el("strong", {}, title), ...lines.map(line => el("p", {}, line)));
}

/** Ask the gateway for a part of the page, which shows the request, and a refusal. Returns null where it failed. */
async function ask(part, name, given, signal) {
    const asked = request(root, name, given);
    showCurl(part, asked);
    part.querySelector(".error").replaceChildren();
    try {
        const response = await send(asked, key, signal);
        const rows = headersOf(response).flatMap(([header, value]) => [el("dt", {}, header), el("dd", {}, value)]);
        part.querySelector(".headers")?.replaceChildren(...rows);
        if (response.ok) return response;
        // A key that is good no more is not tried again and again: failed attempts are counted.
        if (response.status === 401 && part.id !== "entry") $("follow").checked = false;
        complain(part, await problem(response));
    } catch {
        if (!signal?.aborted) complain(part, { message: "The gateway cannot be reached, or it cut the answer." });
    }
    return null;
}

async function read(part, name, given) {
    const response = await ask(part, name, given);
    if (response === null || response.status === 204) return response && {};
    try {
        return await response.json();
    } catch {
        complain(part, { message: "The answer was cut, or is none of the gateway's." });
        return null;
    }
}

/** Read a field's JSON. Complains, and returns undefined, where it is none. */
function json(part, field, what) {
    try {
        return JSON.parse(field.value.trim() || "{}");
    } catch (error) {
        field.setAttribute("aria-invalid", "true");
        complain(part, { message: `${what}: no JSON: ${error.message}` });
        field.focus();
        return undefined;
    }
}

// --- the request as curl -----------------------------------------------------------------------
for (const box of document.querySelectorAll(".curl")) {
    const text = el("pre", { role: "region", "aria-label": "The request as curl", tabindex: "0" });
    const copy = el("button", { type: "button" }, "Copy");
    const details = el("details", {}, el("summary", {}, "The request as curl"), text, copy);
    copy.addEventListener("click", async () => {
        try {
            await navigator.clipboard.writeText(text.textContent);
            say("Copied. Put your key in the variable KEY.");
        } catch {
            getSelection().selectAllChildren(text); // a browser has no clipboard for a page without TLS
            say("Selected: copy it with Ctrl+C. Put your key in the variable KEY.");
        }
    });
    details.open = box.parentElement.id === "chat" || box.parentElement.id === "skills";
    box.append(details);
}

function showCurl(part, asked) {
    const text = part.querySelector(".curl pre");
    if (text) text.textContent = curl(asked);
}

// --- the key, and where one is on the page -----------------------------------------------------
$("entry").querySelector("form").addEventListener("submit", async event => {
    event.preventDefault();
    const given = $("key").value.trim();
    $("key").value = "";
    const message = "A key is one word of plain characters.";
    if (!/^[\x21-\x7e]+$/.test(given)) return complain($("entry"), { message });
    key = given;
    const answer = await read($("entry"), "usage");
    if (answer === null) {
        key = "";
        return $("key").focus();
    }
    $("entry").hidden = true;
    $("forget").hidden = document.querySelector("nav").hidden = false;
    tellWho();
    list();
    show();
});

// A new document remembers nothing of this one.
on("forget", "click", () => location.replace(location.pathname));

/** The API tells of the organisation in its sessions, and of user and tier in one that this key has started. */
function tellWho(started) {
    if (started) known.started = started;
    const { userId, tier } = known.started ?? {};
    const organization = (known.started ?? known.sessions[0])?.organizationId;
    const parts = { key: keyId(key), organisation: organization, user: userId, tier };
    const told = Object.entries(parts).filter(([, value]) => value).map(([name, value]) => `${name} ${value}`);
    if (!organization) told.push("start a session to see whom the key speaks for");
    $("who").textContent = told.join(" · ");
}

function show() {
    if (!key) return;
    const shown = current();
    for (const name of Object.keys(VIEWS)) {
        $(name).hidden = name !== shown;
        document.querySelector(`nav a[href="#${name}"]`).ariaCurrent = name === shown ? "page" : null;
    }
    say("");
    $(`${shown}-title`).focus();
    VIEWS[shown]();
}

const current = () => (location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "usage");
addEventListener("hashchange", show);

// --- usage -------------------------------------------------------------------------------------
let timer = 0;

async function look() {
    clearTimeout(timer);
    const answer = await read($("usage"), "usage");
    clearTimeout(timer);
    timer = setTimeout(lookAgain, EVERY);
    if (answer === null) return;
    $("limits").replaceChildren(...answer.limits.map(limitRow));
    $("looked").textContent = `As of ${new Date().toLocaleTimeString()}`;
}

function lookAgain() {
    if (key && $("follow").checked && current() === "usage" && !document.hidden) look();
}

function limitRow({ name, kind, scope, used, limit, remaining, resetsAt, warning }) {
    const [state, looks] = remaining <= 0 ? ["used up", "used-up"] : warning ? ["warning", "warning"] : ["free", ""];
    const share = { max: limit || 1, high: limit * 0.8, optimum: 0, value: used, "aria-label": `used of ${name}` };
    const number = (value, ...more) => el("td", { class: "number" }, value.toLocaleString(), ...more);
    return el("tr", {},
        el("th", { scope: "row" }, name, el("small", {}, `${kind}, by ${scope}`)),
        number(used, ` of ${limit.toLocaleString()}`, el("meter", share)), number(remaining),
        el("td", resetsAt ? { title: when(resetsAt) } : {}, resetsAt ? until(resetsAt, Date.now()) : "–"),
        el("td", { class: looks }, state));
}

on("look", "click", look);
on("follow", "change", lookAgain);
document.addEventListener("visibilitychange", lookAgain);

// --- chat --------------------------------------------------------------------------------------
async function openChat() {
    if (!known.models) {
        const answer = await read($("chat"), "models");
        if (answer === null) return;
        $("model").replaceChildren(...answer.data.map(({ id }) => el("option", { value: id }, id)));
        known.models = true;
    }
    showCurl($("chat"), request(root, "chat", completion()));
}

function completion() {
    const messages = [{ role: "user", content: $("user").value }];
    if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
    const body = { model: $("model").value, stream: true, stream_options: { include_usage: true }, messages };
    if ($("chat-session").value) body.sessionId = $("chat-session").value;
    return { body };
}

const talk = $("chat").querySelector("form");
talk.addEventListener("input", () => showCurl($("chat"), request(root, "chat", completion())));
talk.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) talk.requestSubmit();
});
on("stop", "click", () => stopping?.abort());

talk.addEventListener("submit", async event => {
    event.preventDefault();
    if (stopping) return;
    stopping = new AbortController();
    const button = talk.querySelector("[type=submit]");
    button.setAttribute("aria-disabled", "true");
    $("stop").disabled = false;
    $("answer").replaceChildren("");
    $("progress").textContent = "Waiting for the answer.";
    $("progress").textContent = await converse(stopping.signal);
    if (document.activeElement === $("stop")) button.focus();
    $("stop").disabled = true;
    button.removeAttribute("aria-disabled");
    stopping = null;
});

/** Send the chat and show its answer as it comes; returns how it ended. */
async function converse(signal) {
    const began = performance.now();
    const seconds = () => `${((performance.now() - began) / 1000).toFixed(2)} s`;
    const response = await ask($("chat"), "chat", completion(), signal);
    if (response === null) return signal.aborted ? "Stopped." : "Refused.";
    let state = {};
    let first = "";
    try {
        for await (const data of events(response.body)) {
            state = heard(state, data);
            if (state.text && !first) {
                first = seconds();
                $("progress").textContent = "The answer is coming.";
            }
            $("answer").firstChild.appendData(state.text);
        }
    } catch {
        if (signal.aborted) return `Stopped after ${seconds()}.`;
    }
    if (state.error) complain($("chat"), state.error);
    if (!state.whole) return "The answer was cut: what is shown is not all of it.";
    const { prompt_tokens: taken, completion_tokens: given } = state.usage ?? {};
    const tokens = state.usage ? `, ${taken} tokens in and ${given} out` : "";
    const reason = state.reason && state.reason !== "stop" ? ` It ended by ${state.reason}.` : "";
    return `Done in ${seconds()}, the first text after ${first || "none"}${tokens}.${reason}`;
}

// --- skills ------------------------------------------------------------------------------------
async function openSkills() {
    if (known.skills === null) {
        const answer = await read($("skills"), "skills");
        if (answer === null) return;
        known.skills = answer.skills;
        $("skill").replaceChildren(...answer.skills.map(({ name }) => el("option", { value: name }, name)));
        describe();
    }
}

function describe() {
    const skill = known.skills.find(one => one.name === $("skill").value);
    if (!skill) return;
    const { properties = {}, required = [] } = skill.parameters;
    const rows = Object.entries(properties).flatMap(([name, of]) => [
        el("dt", {}, name),
        el("dd", {}, `${of.type ?? "any"}${required.includes(name) ? ", required" : ""}. ${of.description ?? ""}`),
    ]);
    const lacks = skill.eligible ? "" : `It cannot be run here: it lacks ${skill.missing.join(", ")}. `;
    const closed = skill.userInvocable ? "" : "Only a model may choose it. ";
    const about = `${lacks}${closed}${skill.description} (${skill.kind}, ${skill.version})`;
    $("about").replaceChildren(el("p", {}, about), el("dl", {}, ...rows));
    $("params").value = JSON.stringify(skeleton(skill.parameters), null, 2);
    preview();
}

const running = params => ({ path: { name: $("skill").value }, body: { sessionId: $("skill-session").value, params } });

function preview() {
    try {
        showCurl($("skills"), request(root, "run", running(JSON.parse($("params").value || "{}"))));
        $("params").removeAttribute("aria-invalid");
    } catch {
        // it is being written: the last good one stands
    }
}

on("skill", "change", describe);
$("skills").querySelector("form").addEventListener("input", preview);
$("skills").querySelector("form").addEventListener("submit", async event => {
    event.preventDefault();
    const params = json($("skills"), $("params"), "Parameters");
    if (params === undefined) return;
    $("result").textContent = "";
    $("ran").textContent = "It runs.";
    const run = await read($("skills"), "run", running(params));
    $("ran").textContent = run ? `It ${run.status} after ${run.durationMs} ms. ${run.error ?? ""}` : "Refused.";
    if (run) $("result").textContent = pretty(run.result);
});

// --- sessions ----------------------------------------------------------------------------------
async function list(cursor) {
    const answer = await read($("sessions"), "sessions", { query: { limit: "20", cursor } });
    if (answer === null) return;
    known.sessions = cursor ? [...known.sessions, ...answer.sessions] : answer.sessions;
    known.next = answer.nextCursor;
    tellWho();
    const items = known.sessions.map(sessionItem);
    $("listed").replaceChildren(...(items.length ? items : [el("li", {}, "No session yet.")]));
    $("more-sessions").hidden = !known.next;
    const active = known.sessions.filter(({ status }) => status === "active");
    for (const select of document.querySelectorAll("select.sessions")) {
        const chosen = select.value;
        const options = active.map(({ sessionId, userId, createdAt }) =>
            el("option", { value: sessionId }, `${sessionId.slice(-6)}, ${userId}, ${when(createdAt)}`));
        select.replaceChildren(el("option", { value: "" }, select.dataset.none), ...options);
        select.value = active.some(({ sessionId }) => sessionId === chosen) ? chosen : "";
    }
}

function sessionItem({ sessionId, status, userId, tier, createdAt, expiresAt, metadata }) {
    const button = (label, of, does) => {
        const made = el("button", { type: "button", "aria-label": `${label} ${of}` }, label);
        made.addEventListener("click", does);
        return made;
    };
    return el("li", {},
        el("code", {}, sessionId),
        el("p", {}, `${status}, user ${userId}, tier ${tier}, from ${when(createdAt)} to ${when(expiresAt)}`),
        ...(Object.keys(metadata).length ? [el("code", {}, JSON.stringify(metadata))] : []),
        el("div", { class: "row" },
            button("History", `of session ${sessionId}`, () => openHistory(sessionId)),
            button("Delete", `session ${sessionId}`, () => remove(sessionId))));
}

$("sessions").querySelector("form").addEventListener("submit", async event => {
    event.preventDefault();
    const metadata = json($("sessions"), $("metadata"), "Metadata");
    if (metadata === undefined) return;
    $("metadata").removeAttribute("aria-invalid");
    const started = await read($("sessions"), "start", { body: { metadata } });
    if (started === null) return;
    tellWho(started);
    say(`Session ${started.sessionId} has started.`);
    await list();
});

let agreed = null; // what is done where the question is answered by yes

function remove(sessionId) {
    agreed = async () => {
        if ((await read($("sessions"), "remove", { path: { session_id: sessionId } })) === null) return;
        if ($("history").dataset.session === sessionId) $("history").hidden = true;
        await list();
        say(`Session ${sessionId} is deleted.`);
        $("sessions-title").focus();
    };
    $("question").textContent = `Delete session ${sessionId} and its history? Nothing brings it back.`;
    $("ask").showModal();
}

async function openHistory(sessionId) {
    $("history").dataset.session = sessionId;
    $("history-title").textContent = `History of ${sessionId}`;
    $("messages").replaceChildren();
    $("history").hidden = false;
    $("history-title").focus();
    await page();
}

async function page(cursor) {
    const sessionId = $("history").dataset.session;
    const given = { path: { session_id: sessionId }, query: { limit: "20", cursor } };
    const answer = await read($("sessions"), "messages", given);
    if (answer === null || sessionId !== $("history").dataset.session) return;
    $("messages").append(...answer.messages.map(({ role, timestamp, content }) =>
        el("li", {}, el("strong", {}, role), ` ${when(timestamp)}`, el("p", {}, pretty(content)))));
    $("more-history").hidden = !answer.nextCursor;
    $("more-history").dataset.cursor = answer.nextCursor ?? "";
    if (!$("messages").childElementCount) $("messages").append(el("li", {}, "Nothing was said in it yet."));
}

/** A button that goes takes the focus with it; it is given to the heading of the list. */
async function more(what, read) {
    await read;
    if ($(`more-${what}`).hidden) $(`${what}-title`).focus({ preventScroll: true });
}

on("list", "click", () => list());
on("more-sessions", "click", () => more("sessions", list(known.next)));
on("more-history", "click", () => more("history", page($("more-history").dataset.cursor)));
on("no", "click", () => $("ask").close());
on("yes", "click", () => {
    $("ask").close();
    agreed();
});
