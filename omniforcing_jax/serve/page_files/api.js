// The server's API: requests with a token, errors in words, and the WebSocket of one stream.

const KEY = "omniforcing-token";

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function takeToken() {
  const url = new URL(location.href);
  const token = url.searchParams.get("token");
  if (token) {
    sessionStorage.setItem(KEY, token);
    url.searchParams.delete("token");
    history.replaceState(null, "", url);
  }
}

export function setToken(token) {
  sessionStorage.setItem(KEY, token);
}

function token() {
  return sessionStorage.getItem(KEY);
}

export function address(path, query = {}) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  if (token()) url.searchParams.set("token", token());
  return url;
}

export async function ask(method, path, body) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  const isFile = body instanceof Blob;
  if (body && !isFile) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && !isFile ? JSON.stringify(body) : body });
  } catch {
    throw new Refusal(0, "The server does not answer.");
  }
  if (answer.status === 204) return null;
  const values = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
  if (!answer.ok) throw new Refusal(answer.status, values.error ?? `The server answered ${answer.status}.`);
  return values;
}

// Follows one stream. A message with `bytes` is followed by as many, in a binary frame of its own.
export class Line {
  constructor(id, { atStart, onMessage, onClose }) {
    const url = address(`/v1/streams/${id}/live`, atStart ? { from: "start" } : {});
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(url);
    this.socket.binaryType = "arraybuffer";
    this.isClosed = false;
    let envelope = null;
    this.socket.onmessage = ({ data }) => {
      if (this.isClosed) return;
      if (typeof data !== "string") return onMessage(envelope, data);
      envelope = JSON.parse(data);
      if (!("bytes" in envelope)) onMessage(envelope, null);
    };
    this.socket.onclose = (event) => {
      if (!this.isClosed) onClose(event);
      this.isClosed = true;
    };
  }

  report(second, playing) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ second, playing }));
  }

  close() {
    this.isClosed = true;
    this.socket.close();
  }
}
