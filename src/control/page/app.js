// The demo page: publish, watch, or carry session descriptions by hand. No framework, no build step, nothing fetched
// from elsewhere. Each panel is a module; this one connects them with the address bar and with each other.
//
// Address:  ?stream=NAME   the stream's name (default `default`)
//           ?source=camera|screen|synthetic, ?codec=auto|VP8|H264|VP9|AV1, ?size=640x360|1280x720|1920x1080,
//           ?simulcast=1
//           #publish, #watch, #paste  open a panel; #play opens the watch panel and starts (publishing never starts by itself)
//
// Tests drive the page by these ids, which therefore do not change:
//
//   tab-publish, tab-watch, tab-legacy         the three tabs (attribute data-state as on the panel)
//   panel-publish, panel-watch, panel-legacy   data-state: idle | connecting | waiting | live | stopped | failed
//                                              (publish never waits; legacy waits for the answer)
//   {publish,watch,legacy}-status-text         one sentence; -status-hint: what to do next; -remedy: button that does it
//   {publish,watch,legacy}-stream, -token      inputs; the token is inside the <details> {…}-token-box
//   {publish,watch,legacy}-video               <video>
//   {publish,watch,legacy}-figure-KEY          bitrate resolution fps codec loss rtt srtp dtls,
//                                              receiving: jitter-buffer freezes, dropped, sending: limit resent keyframes-asked
//   publish-source-camera, -screen, -synthetic radio buttons
//   publish-codec, publish-size                selects
//   publish-audio, publish-simulcast           checkboxes
//   publish-start, publish-stop                buttons; the one that makes no sense now is hidden
//   publish-link, publish-link-copy            the watch link; publish-whip-url, publish-whip-copy
//   watch-start, watch-stop                    buttons, likewise
//   watch-unmute, watch-mute, watch-fullscreen buttons on the picture; sound is off until watch-unmute is clicked
//   watch-quality                              select on the picture: "" (Auto), a layer's rid, or RID/SPATIAL; hidden unless there are two
//   watch-link, watch-link-copy                the watch link; watch-whep-url, watch-whep-copy
//   streams, streams-list, streams-empty       the list of live streams; its buttons have data-stream="NAME"
//   legacy-source                              select: camera | synthetic
//   legacy-publish, legacy-join, legacy-stop   "Publish a Broadcast", "Join a Broadcast", stop
//   legacy-offer, legacy-curl, legacy-answer   textarea, the whole curl line as text, textarea
//   legacy-offer-copy, legacy-curl-copy        buttons
//   legacy-send, legacy-start                  "Send it for me", "Start session"
//   insecure-notice                            shown only where the browser gives no camera because of plain HTTP
//
// window.manycast.{publish,watch,legacy} has: pc (latest RTCPeerConnection or null), state, stats() (latest figures as
// a plain object, see stats.js, or null).

import { $, STREAM_NAME } from "./dom.js";
import { LegacyPanel } from "./legacy.js";
import { PublishPanel } from "./publish.js";
import { StreamList } from "./streams.js";
import { WatchPanel } from "./watch.js";

const TABS = { publish: "publish", watch: "watch", play: "watch", paste: "legacy" };

const publish = new PublishPanel({
  onlive(stream) {
    if (!watch.active) watch.stream = stream;
    rememberStream(stream);
  },
});
const watch = new WatchPanel();
const legacy = new LegacyPanel();
new StreamList({
  token: () => $("watch-token").value.trim() || $("publish-token").value.trim(),
  onpick(name) {
    watch.stop();
    watch.stream = name;
    rememberStream(name);
    watch.start();
  },
  onlist: (streams) => publish.showViewers(streams),
});

window.manycast = {
  publish: hook(publish, () => publish.publisher?.pc),
  watch: hook(watch, () => watch.viewer?.pc),
  legacy: hook(legacy, () => legacy.pc),
};

function hook(panel, pc) {
  return {
    get pc() {
      return pc() ?? null;
    },
    get state() {
      return panel.status.state;
    },
    stats: () => panel.meter.latest,
  };
}

// ---------------------------------------------------------------------------------------------------------- tabs

const tabs = [...document.querySelectorAll("[role=tab]")];

function openTab(name) {
  for (const tab of tabs) {
    const selected = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !selected;
  }
  // Watching needs no camera.
  $("insecure-notice").hidden = window.isSecureContext || name === "watch";
}

for (const tab of tabs) {
  const name = tab.id.replace("tab-", "");
  tab.addEventListener("click", () => {
    openTab(name);
    history.replaceState(null, "", `${location.pathname}${location.search}#${name === "legacy" ? "paste" : name}`);
  });
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}

// -------------------------------------------------------------------------------------------------------- address

function readAddress() {
  const query = new URLSearchParams(location.search);
  const stream = query.get("stream") ?? "";
  if (STREAM_NAME.test(stream)) {
    if (!publish.active) {
      $("publish-stream").value = stream;
      publish.showAddresses();
    }
    if (!watch.active) watch.stream = stream;
    if (!legacy.active) legacy.stream = stream;
  }
  if (query.has("source")) publish.source = query.get("source");
  for (const key of ["codec", "size"]) {
    const select = $(`publish-${key}`);
    const option = [...select.options].find(({ value, disabled }) => value === query.get(key) && !disabled);
    if (option) select.value = option.value;
  }
  if (query.has("simulcast") && !publish.active) $("publish-simulcast").checked = query.get("simulcast") === "1";
  const hash = location.hash.slice(1);
  openTab(TABS[hash] ?? "publish");
  if (hash === "play") watch.start();
}

/** Keeps the name in the address bar, so that a reload comes back to it. */
function rememberStream(stream) {
  const query = new URLSearchParams(location.search);
  query.set("stream", stream);
  history.replaceState(null, "", `${location.pathname}?${query}${location.hash}`);
}

// ------------------------------------------------------------------------------------------------- insecure origin

if (!window.isSecureContext) {
  const port = location.port ? `:${location.port}` : "";
  $("insecure-origin").textContent = location.origin;
  $("insecure-localhost").textContent = `http://localhost${port}`;
  $("insecure-caddy").textContent = `caddy reverse-proxy --from your.domain --to localhost${port || ":80"}`;
  $("insecure-flag-origin").textContent = location.origin;
}

window.addEventListener("hashchange", readAddress);
readAddress();

// ----------------------------------------------------------------------------------------------------- leaving

// A page that is closed says so itself: otherwise the stream would stay taken until the server notices the silence.
window.addEventListener("pagehide", () => {
  for (const panel of [publish, watch, legacy]) panel.stop();
});

// What is on the air is told by the title, which is all that one sees of a tab in the background.
new MutationObserver(() => {
  const live = publish.status.state === "live" || legacy.status.state === "live";
  document.title = `${live ? "● " : ""}${publish.active ? `${publish.stream} – ` : watch.active ? `${watch.stream} – ` : ""}manycast`;
}).observe($("main"), { attributes: true, attributeFilter: ["data-state"], subtree: true });
