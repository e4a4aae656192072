// Where the picture and the sound come from: camera, screen, or the test card.

import { BEEP_MS, testCard } from "./pattern.js";

const FRAMES_PER_SECOND = 30;

/** Why there is no source. `suggest` names another one that would work. */
export class SourceError extends Error {
  constructor(message, { hint = "", suggest = null } = {}) {
    super(message);
    Object.assign(this, { hint, suggest });
  }
}

/**
 * Opens a source: `{ media, stop() }`.
 * `kind` is `camera`, `screen` or `synthetic`; `size` is `{ width, height }`; `audio` asks for sound where there is any.
 */
export async function openSource(kind, { size, audio }) {
  if (kind === "synthetic") return syntheticSource(size, audio);
  if (!navigator.mediaDevices) {
    throw new SourceError("This browser gives no camera or screen to this page.", {
      hint: window.isSecureContext ? "" : "The page came over plain HTTP; see the note above.",
      suggest: "synthetic",
    });
  }
  const media = kind === "screen" ? await openScreen(size, audio) : await openCamera(size, audio);
  return { media, stop: () => media.getTracks().forEach((track) => track.stop()) };
}

async function openCamera({ width, height }, audio) {
  const video = { width: { ideal: width }, height: { ideal: height }, frameRate: { ideal: FRAMES_PER_SECOND } };
  try {
    return await navigator.mediaDevices.getUserMedia({ video, audio });
  } catch (error) {
    if (error.name !== "NotFoundError" || !audio) throw explainCamera(error);
  }
  // NotFoundError does not say which of the two is missing. A camera without a microphone will do.
  try {
    return await navigator.mediaDevices.getUserMedia({ video });
  } catch (error) {
    throw explainCamera(error);
  }
}

async function openScreen({ width, height }, audio) {
  if (!navigator.mediaDevices.getDisplayMedia) {
    throw new SourceError("This browser cannot share a screen.", {
      hint: "Phones' browsers as a rule cannot.",
      suggest: "camera",
    });
  }
  try {
    const media = await navigator.mediaDevices.getDisplayMedia({
      video: { width: { max: width }, height: { max: height }, frameRate: { max: FRAMES_PER_SECOND } },
      audio,
    });
    const [track] = media.getVideoTracks();
    // Text on a screen is to stay sharp, rather than smooth, when bits are short.
    if ("contentHint" in track) track.contentHint = "detail";
    return media;
  } catch (error) {
    if (error.name === "NotAllowedError")
      throw new SourceError("No screen was chosen.", { hint: "Go live again and pick a screen, window or tab." });
    throw new SourceError("The screen cannot be captured.", { hint: error.message, suggest: "synthetic" });
  }
}

function explainCamera(error) {
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return new SourceError("The browser did not allow the camera.", {
        hint: "Allow it by the icon beside the address, then go live again.",
        suggest: "synthetic",
      });
    case "NotFoundError":
    case "OverconstrainedError":
      return new SourceError("This machine has no camera.", {
        hint: "The test card needs none.",
        suggest: "synthetic",
      });
    case "NotReadableError":
    case "AbortError":
      return new SourceError("The camera is there but cannot be opened.", {
        hint: "Another program may be using it. Close that one, then go live again.",
        suggest: "synthetic",
      });
    default:
      return new SourceError("The camera cannot be used.", { hint: error.message, suggest: "synthetic" });
  }
}

function syntheticSource(size, audio) {
  const picture = "MediaStreamTrackGenerator" in window ? workerPicture(size) : pagePicture(size);
  const sound = audio ? beep() : null;
  const media = new MediaStream([picture.track, ...(sound ? [sound.track] : [])]);
  return {
    media,
    stop() {
      media.getTracks().forEach((track) => track.stop());
      picture.stop();
      sound?.stop();
    },
  };
}

function workerPicture({ width, height }) {
  const track = new MediaStreamTrackGenerator({ kind: "video" });
  const worker = new Worker("/pattern-worker.js", { type: "module" });
  worker.postMessage({ writable: track.writable, width, height, framesPerSecond: FRAMES_PER_SECOND }, [track.writable]);
  return { track, stop: () => worker.terminate() };
}

/** Firefox and Safari: full rate only while the tab is in front. */
function pagePicture({ width, height }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const paint = testCard(canvas, document.createElement("canvas"));
  let frame = 0;
  paint(frame);
  const timer = setInterval(() => paint((frame += 1)), 1000 / FRAMES_PER_SECOND);
  const [track] = canvas.captureStream(FRAMES_PER_SECOND).getVideoTracks();
  return { track, stop: () => clearInterval(timer) };
}

/** A 1 kHz beep at each whole second. It goes into the track only: nothing is heard on this machine. */
function beep() {
  const context = new AudioContext({ sampleRate: 48000 });
  const second = context.createBuffer(1, context.sampleRate, context.sampleRate);
  const samples = second.getChannelData(0);
  const length = (BEEP_MS / 1000) * context.sampleRate;
  for (let i = 0; i < length; i += 1) {
    // Short ramps at both ends, or each beep would click.
    const envelope = Math.min(1, i / 240, (length - i) / 240);
    samples[i] = 0.25 * envelope * Math.sin((2 * Math.PI * 1000 * i) / context.sampleRate);
  }
  const player = new AudioBufferSourceNode(context, { buffer: second, loop: true });
  const out = context.createMediaStreamDestination();
  player.connect(out);
  player.start(context.currentTime + (1000 - (Date.now() % 1000)) / 1000);
  context.resume().catch(() => {});
  return { track: out.stream.getAudioTracks()[0], stop: () => context.close() };
}
