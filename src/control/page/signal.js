// What WHIP (RFC 9725) and WHEP share: one POST carries the offer and brings the answer, one DELETE ends the session.
//
// No trickle: the server is ICE-lite and learns this browser's addresses from its checks, so candidates that come
// after the offer need no PATCH. The offer waits for gathering a moment only, for the sake of other servers.

const GATHER_MS_MAX = 2000;
/** No path by then means a firewall; ICE itself would go on trying for half a minute. */
const CONNECT_MS_MAX = 15000;

/** Why a session did not come about, or ended. `kind` is what the program looks at, the rest is for people. */
export class SignalError extends Error {
  constructor(kind, message, { hint = "", status = 0, retryAfterMs = 0 } = {}) {
    super(message);
    Object.assign(this, { kind, hint, status, retryAfterMs });
  }
}

/** Offers `pc` at `url`. Resolves, with the answer set, to the session's resource. */
export async function negotiate(pc, url, { token, signal, munge = (sdp) => sdp, mungeAnswer = (sdp) => sdp }) {
  const offer = await pc.createOffer();
  await pc.setLocalDescription({ type: "offer", sdp: munge(offer.sdp) });
  await gathered(pc);
  signal.throwIfAborted();

  const response = await post(url, "application/sdp", pc.localDescription.sdp, token, signal);
  const resource = new Resource(response, token);
  const sdp = await response.text();
  try {
    signal.throwIfAborted();
    await pc.setRemoteDescription({ type: "answer", sdp: mungeAnswer(sdp) });
  } catch (error) {
    // The server has a session by now that nobody will use.
    resource.delete();
    if (signal.aborted) throw signal.reason;
    throw new SignalError("answer", "This browser cannot use the server's answer.", {
      hint: String(error.message ?? error),
    });
  }
  return resource;
}

export async function post(url, contentType, body, token, signal) {
  const headers = { "Content-Type": contentType };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(url, { method: "POST", headers, body, signal });
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw new SignalError("network", "The server cannot be reached.", {
      hint: `Nothing answered at ${location.origin}. Is manycast still running, and the network up?`,
    });
  }
  if (!response.ok) throw await refusal(response, Boolean(token));
  return response;
}

/** The session at the server: what Location named. */
class Resource {
  constructor(response, token) {
    const location = response.headers.get("Location");
    const url = location && new URL(location, response.url);
    // A server behind a proxy may name its public origin. The session is on the one that just answered as well, and
    // the page's Content-Security-Policy knows no other; unless the answer came from elsewhere to begin with.
    this.url = url && (response.redirected ? url.href : url.pathname);
    this.links = response.headers.get("Link") ?? "";
    this.etag = response.headers.get("ETag");
    this.token = token;
  }

  /** The path that a `Link` (RFC 8288) names by its relation; for the origin, see above. */
  link(rel) {
    for (const [, target, parameters] of this.links.matchAll(/<([^>]*)>([^<]*)/g))
      if (parameters.includes(`rel="${rel}"`)) return new URL(target, location.href).pathname;
    return null;
  }

  /** Keepalive: must get through while the page is being closed. */
  delete() {
    if (!this.url) return;
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    fetch(this.url, { method: "DELETE", headers, keepalive: true }).catch(() => {});
    this.url = null;
  }
}

export { Resource };

async function refusal(response, hadToken) {
  const { status } = response;
  const detail = await problemDetail(response);
  const seconds = Number.parseInt(response.headers.get("Retry-After"), 10);
  const more = { status, retryAfterMs: Number.isFinite(seconds) ? seconds * 1000 : 0, hint: detail };
  switch (status) {
    case 401:
      return new SignalError(
        "token",
        hadToken ? "The server did not take this token." : "The server asks for a token.",
        {
          ...more,
          hint: "Enter the token that the server's operator gave you, then try again.",
        },
      );
    case 403:
      return new SignalError("token", "This token is not for this stream.", {
        ...more,
        hint: detail || "Ask the operator for one that is.",
      });
    case 404:
      return new SignalError("gone", "The server does not know this stream.", {
        ...more,
        hint: detail || "Check the name.",
      });
    case 409:
      return new SignalError("conflict", "The server refused for now.", more);
    case 422:
      return new SignalError("unusable", "Browser and server found no common ground.", {
        ...more,
        hint: detail || "Try another codec.",
      });
    case 429:
    case 503:
      return new SignalError("busy", "The server is busy.", { ...more, hint: detail || "Try again in a moment." });
    default:
      return new SignalError(status >= 500 ? "busy" : "refused", `The server answered ${status}.`, {
        ...more,
        hint: detail || "Its log says more.",
      });
  }
}

/** RFC 9457 says `detail`; a proxy in between says HTML, which is no use to anyone. */
async function problemDetail(response) {
  const type = response.headers.get("Content-Type") ?? "";
  try {
    if (type.includes("json")) {
      const problem = await response.json();
      return problem.detail || problem.title || "";
    }
    return type.startsWith("text/plain") ? (await response.text()).trim().slice(0, 300) : "";
  } catch {
    return "";
  }
}

/** Resolves when all candidates are in the local description, or enough time has gone by. */
export function gathered(pc) {
  if (pc.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, GATHER_MS_MAX);
    pc.addEventListener("icegatheringstatechange", () => {
      if (pc.iceGatheringState !== "complete") return;
      clearTimeout(timer);
      resolve();
    });
  });
}

/**
 * Follows a negotiated connection to its end: resolves to the SignalError that says why it ended.
 * `onstate` hears `connected` and `interrupted`. Rejects when `signal` aborts.
 */
export function follow(pc, signal, onstate) {
  return new Promise((resolve, reject) => {
    let connected = false;
    signal.throwIfAborted();
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });

    const timer = setTimeout(() => connected || resolve(noPath(pc)), CONNECT_MS_MAX);
    const changed = () => {
      if (pc.connectionState === "connected") {
        connected = true;
        clearTimeout(timer);
        onstate("connected");
      } else if (pc.connectionState === "disconnected") {
        onstate("interrupted");
      } else if (pc.connectionState === "failed") {
        resolve(connected ? lost() : noPath(pc));
      }
    };
    pc.addEventListener("connectionstatechange", changed);
    // A server that ends the session says so by DTLS close_notify, which no state of the connection itself shows.
    for (const transport of transportsOf(pc)) {
      transport.addEventListener("statechange", () => {
        if (transport.state === "closed" && pc.signalingState !== "closed") resolve(ended());
      });
    }
    changed();
  });
}

function transportsOf(pc) {
  const ends = pc.getTransceivers().flatMap(({ sender, receiver }) => [sender.transport, receiver.transport]);
  return new Set(ends.filter(Boolean));
}

const ended = () => new SignalError("ended", "The server ended the session.");
const lost = () => new SignalError("lost", "The connection was lost.", { hint: "No packets got through for a while." });

function noPath(pc) {
  if (["connected", "completed"].includes(pc.iceConnectionState)) {
    return new SignalError("dtls", "The secure handshake with the server did not complete.", {
      hint: "Something between here and the server passes small UDP packets but not these.",
    });
  }
  const offered = [...(pc.remoteDescription?.sdp ?? "").matchAll(/^a=candidate:\S+ \d+ udp \d+ (\S+) (\d+)/gim)];
  const addresses = [
    ...new Set(offered.map(([, ip, port]) => (ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`))),
  ];
  return new SignalError("no-path", "The server answered, but no media gets through.", {
    hint: addresses.length
      ? `It offered UDP ${addresses.slice(0, 3).join(", ")}. Is that reachable from here? If not, open the port, or start manycast with --public-ip.`
      : "It offered no address at all.",
  });
}
