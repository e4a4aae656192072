// libwebrtc as @roamhq/wrtc has it publishes or watches. Says how it fares five times a second, as JSON.
//
// wrtc_peer.js publish WHIP_URL
// wrtc_peer.js watch WHEP_URL [SERVER_PORT RELAY_PORT]

const { RTCPeerConnection, MediaStream, nonstandard } = require("@roamhq/wrtc");

const { RTCVideoSource, RTCVideoSink, RTCAudioSource, RTCAudioSink } = nonstandard;

const [role, url, serverPort, relayPort] = process.argv.slice(2);

const WIDTH = 320;
const HEIGHT = 240;
const DARK = 40;
const BRIGHT = 220;
const BAR = 64;

const say = (what) => console.log(JSON.stringify(what));

const watched = { frames: 0, bright: 0, loud: 0 };

/** A bright bar that moves over a dark ground, 30 times a second. */
function picture(source) {
  let at = 0;
  setInterval(() => {
    const data = new Uint8ClampedArray((WIDTH * HEIGHT * 3) / 2).fill(128);
    data.fill(DARK, 0, WIDTH * HEIGHT);
    for (let y = 0; y < HEIGHT; y += 1) data.fill(BRIGHT, y * WIDTH + at, y * WIDTH + at + BAR);
    at = (at + 4) % (WIDTH - BAR);
    source.onFrame({ width: WIDTH, height: HEIGHT, data });
  }, 1000 / 30);
}

/** 440 Hz, in blocks of 10 ms. A timer of Node's is late now and then: what is due goes out together. */
function tone(source) {
  const start = Date.now();
  let sample = 0;
  setInterval(() => {
    while (sample < (Date.now() - start) * 48) {
      const samples = Int16Array.from({ length: 480 }, (_, n) => 12000 * Math.sin((Math.PI * 880 * (sample + n)) / 48000));
      source.onData({ samples, sampleRate: 48000, bitsPerSample: 16, channelCount: 1, numberOfFrames: 480 });
      sample += 480;
    }
  }, 10);
}

function watch(track) {
  if (track.kind === "video") {
    new RTCVideoSink(track).onframe = ({ frame }) => {
      watched.frames += 1;
      watched.bright += Math.max(...frame.data.subarray(0, frame.width)) > BRIGHT - 30;
    };
  } else {
    new RTCAudioSink(track).ondata = ({ samples }) => {
      watched.loud += Math.max(...samples) > 6000;
    };
  }
}

/** All candidates in the offer, as WHIP and WHEP like it. */
function gathered(pc) {
  return new Promise((resolve) => {
    const check = () => pc.iceGatheringState === "complete" && resolve();
    pc.addEventListener("icegatheringstatechange", check);
    check();
  });
}

async function main() {
  const pc = new RTCPeerConnection({ iceServers: [] });
  if (role === "publish") {
    const [video, audio] = [new RTCVideoSource(), new RTCAudioSource()];
    const stream = new MediaStream();
    for (const source of [video, audio]) pc.addTrack(source.createTrack(), stream);
    picture(video);
    tone(audio);
  } else {
    pc.addEventListener("track", ({ track }) => watch(track));
    for (const kind of ["video", "audio"]) pc.addTransceiver(kind, { direction: "recvonly" });
  }
  await pc.setLocalDescription(await pc.createOffer());
  await gathered(pc);
  const headers = { "Content-Type": "application/sdp" };
  const response = await fetch(url, { method: "POST", headers, body: pc.localDescription.sdp });
  let sdp = await response.text();
  if (!response.ok) throw new Error(sdp);
  say({ answer: sdp });
  if (relayPort) sdp = sdp.replaceAll(` 127.0.0.1 ${serverPort} `, ` 127.0.0.1 ${relayPort} `);
  await pc.setRemoteDescription({ type: "answer", sdp });

  setInterval(async () => {
    const stats = [...(await pc.getStats()).values()];
    const video = stats.find((s) => s.type === "inbound-rtp" && s.kind === "video") ?? {};
    // This libwebrtc shows sender reports of audio only; of video that it can tell when a picture was captured.
    const reports = stats.filter((s) => s.type === "remote-outbound-rtp").map((s) => [s.kind, s.packetsSent]);
    if (video.estimatedPlayoutTimestamp) reports.push(["video", video.estimatedPlayoutTimestamp]);
    say({
      state: pc.connectionState,
      ...watched,
      // A frame that did not come whole shows as a wait or a request, since VP8 has each one refer to the last.
      gaps: video.framesDropped ?? 0,
      asked: (video.pliCount ?? 0) + (video.firCount ?? 0),
      nacks: video.nackCount ?? 0,
      lost: video.packetsLost ?? 0,
      reports: Object.fromEntries(reports),
    });
  }, 200);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
