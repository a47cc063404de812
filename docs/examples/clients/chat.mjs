// Talk to the gateway over its WebSocket, as a page in a browser does: `node chat.mjs "Good morning"`.
//
// Needs Node 22 (Node 20 with --experimental-websocket), and in the environment OPENCLAW_URL and OPENCLAW_KEY. A
// browser cannot set headers on a WebSocket, so the key buys a ticket first; in a page, your own server would do that.

const url = process.env.OPENCLAW_URL ?? "http://127.0.0.1:9090";
const headers = { "X-API-Key": process.env.OPENCLAW_KEY, "Content-Type": "application/json" };

async function post(path, body) {
  const answer = await fetch(url + path, { method: "POST", headers, body: JSON.stringify(body) });
  const value = await answer.json();
  if (!answer.ok) throw new Error(`${value.error.code}: ${value.error.message}`);
  return value;
}

async function ask(sessionId, content) {
  const { ticket } = await post("/api/v1/ws-tickets", { sessionId });
  const socket = new WebSocket(`${url.replace("http", "ws")}/ws?sessionId=${sessionId}&ticket=${ticket}`);
  return new Promise((resolve, reject) => {
    const id = crypto.randomUUID();
    socket.onopen = () => socket.send(JSON.stringify({ type: "message", id, content, stream: true }));
    socket.onerror = () => reject(new Error("the socket was refused or lost"));
    socket.onclose = (event) => reject(new Error(`closed: ${event.code} ${event.reason}`));
    socket.onmessage = (event) => {
      const frame = JSON.parse(event.data);
      if (frame.type === "stream" && frame.ref === id) process.stdout.write(frame.chunk);
      if (frame.type === "error") reject(new Error(`${frame.code}: ${frame.message}`));
      if (frame.type === "message" && frame.ref === id) {
        process.stdout.write("\n");
        resolve(frame.content);
        socket.close();
      }
    };
  });
}

const { sessionId } = await post("/api/v1/sessions", {});
await ask(sessionId, process.argv.slice(2).join(" ") || "Hello");
