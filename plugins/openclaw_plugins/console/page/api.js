// What the page asks the gateway, and how it reads the answers. No DOM: the tests run it by itself.

/** Every call of the page; the paths are those of the OpenAPI document. */
export const CALLS = {
    usage: ["GET", "/api/v1/usage"],
    models: ["GET", "/v1/models"],
    chat: ["POST", "/v1/chat/completions"],
    skills: ["GET", "/api/v1/skills"],
    run: ["POST", "/api/v1/skills/{name}/execute"],
    sessions: ["GET", "/api/v1/sessions"],
    start: ["POST", "/api/v1/sessions"],
    remove: ["DELETE", "/api/v1/sessions/{session_id}"],
    messages: ["GET", "/api/v1/sessions/{session_id}/messages"],
};

/** Headers that tell a caller where it stands. */
const TOLD = /^(x-request-id|ratelimit(-policy)?|x-ratelimit-.*|retry-after(-ms)?|x-quota-warning|server-timing)$/;

/** A request: `path` fills the braces, `query` leaves out what is empty. `root` is the address of the gateway. */
export function request(root, name, { path = {}, query = {}, body } = {}) {
    const [method, template] = CALLS[name];
    const filled = template.replace(/\{(\w+)\}/g, (_, part) => encodeURIComponent(path[part]));
    const url = new URL(filled.slice(1), root);
    for (const [field, value] of Object.entries(query)) if (value) url.searchParams.set(field, value);
    return { method, url: url.href, body: body === undefined ? undefined : JSON.stringify(body) };
}

/** The same request for a shell, with the key left to the variable KEY. */
export function curl({ method, url, body }) {
    const lines = [`curl -sN ${quoted(url)}`, '-H "Authorization: Bearer $KEY"'];
    if (method !== (body === undefined ? "GET" : "POST")) lines[0] = `curl -sN -X ${method} ${quoted(url)}`;
    if (body !== undefined) lines.push("-H 'Content-Type: application/json'", `-d ${quoted(body)}`);
    return lines.join(" \\\n  ");
}

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`;

export async function send(asked, key, signal) {
    const headers = { authorization: `Bearer ${key}` };
    if (asked.body !== undefined) headers["content-type"] = "application/json";
    return fetch(asked.url, {
        method: asked.method, headers, body: asked.body, signal,
        credentials: "omit", cache: "no-store", redirect: "error", referrerPolicy: "no-referrer",
    });
}

/** Why a request failed, as its one error body says it; a proxy's own page says nothing but its status. */
export async function problem(response) {
    const text = await response.text();
    let error = {};
    try {
        error = JSON.parse(text).error ?? {};
    } catch {
        // not the gateway's
    }
    return {
        status: response.status,
        code: error.code ?? "",
        message: error.message ?? "The answer is none of the gateway's: something in between gave it.",
        problems: (error.problems ?? []).map(one => `${one.param}: ${one.message}`),
        requestId: error.requestId ?? response.headers.get("x-request-id") ?? "",
        retryAfter: Number(response.headers.get("retry-after")) || null,
        resetsAt: error.limit?.resetsAt ?? null,
    };
}

export function headersOf(response) {
    return [...response.headers].filter(([name]) => TOLD.test(name)).sort();
}

/** The data of each server-sent event, as it comes. */
export async function* events(stream) {
    const reader = stream.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    let data = [];
    try {
        for (;;) {
            const { done, value } = await reader.read();
            if (done) return;
            const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
            rest = lines.pop();
            for (const line of lines) {
                if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
                else if (line === "" && data.length) {
                    yield data.join("\n");
                    data = [];
                }
            }
        }
    } finally {
        reader.cancel().catch(() => {});
    }
}

/** Where a stream stands after one more event: text, usage, why it ended, an error, whether it is whole. */
export function heard(state, data) {
    if (data === "[DONE]") return { ...state, whole: true, text: "" };
    const chunk = JSON.parse(data);
    if (chunk.error) return { ...state, error: chunk.error, text: "" };
    const choice = chunk.choices?.[0];
    const calls = (choice?.delta?.tool_calls ?? []).map(call =>
        (call.function?.name ? `\n[call of ${call.function.name}] ` : "") + (call.function?.arguments ?? ""));
    return {
        ...state,
        text: (choice?.delta?.content ?? choice?.delta?.refusal ?? "") + calls.join(""),
        usage: chunk.usage ?? state.usage,
        reason: choice?.finish_reason ?? state.reason,
    };
}

/** "in 42 s", or a date where it is more than a day away. */
export function until(when, now) {
    const seconds = Math.ceil((Date.parse(when) - now) / 1000);
    if (seconds <= 0) return "now";
    if (seconds < 120) return `in ${seconds} s`;
    if (seconds < 7200) return `in ${Math.ceil(seconds / 60)} min`;
    if (seconds < 172800) return `in ${Math.ceil(seconds / 3600)} h`;
    return `on ${when.slice(0, 10)}`;
}

/** Parameters to begin with: those that a skill's schema requires, empty or at their default. */
export function skeleton(schema) {
    const empty = { string: "", integer: 0, number: 0, boolean: false, array: [], object: {} };
    const named = (schema?.required ?? []).map(name => {
        const of = schema.properties?.[name] ?? {};
        return [name, of.default ?? of.enum?.[0] ?? empty[of.type] ?? null];
    });
    return Object.fromEntries(named);
}

/** The public part of a key: what `keys list` shows it by. Empty for a token. */
export const keyId = key => /^ocg_([A-Za-z0-9]+)_/.exec(key)?.[1] ?? "";
