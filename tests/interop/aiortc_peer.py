"""aiortc publishes or watches. Says how it fares five times a second, as JSON.

aiortc_peer.py publish WHIP_URL
aiortc_peer.py watch WHEP_URL [SERVER_PORT RELAY_PORT]
"""

import asyncio
import fractions
import json
import math
import struct
import sys
import urllib.request

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import VideoStreamTrack
from av import AudioFrame, VideoFrame

WIDTH, HEIGHT = 320, 240
DARK, BRIGHT = 40, 220
TIMESTAMPS_PER_FRAME = 3000
# The bar moves so far from one picture to the next, and begins anew behind the last place.
STEP, PLACES = 4, WIDTH - 64


def say(**what):
    print(json.dumps(what), flush=True)


class Picture(VideoStreamTrack):
    """A bright bar that moves over a dark ground, 30 times a second."""

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        frame = VideoFrame(WIDTH, HEIGHT, "yuv420p")
        at = pts // TIMESTAMPS_PER_FRAME * STEP % PLACES
        row = bytes([DARK]) * at + bytes([BRIGHT]) * 64
        row += bytes([DARK]) * (WIDTH - len(row))
        for plane, line in zip(frame.planes, (row, bytes([128]) * (WIDTH // 2), bytes([128]) * (WIDTH // 2))):
            plane.update(line.ljust(plane.line_size, b"\0") * plane.height)
        frame.pts, frame.time_base = pts, time_base
        return frame


class Tone(MediaStreamTrack):
    """440 Hz, in frames of 20 ms."""

    kind = "audio"
    pts = 0
    start = None

    async def recv(self):
        loop = asyncio.get_running_loop()
        self.start = self.start or loop.time()
        await asyncio.sleep(max(0, self.start + self.pts / 48000 - loop.time()))
        samples = [int(12000 * math.sin(math.tau * 440 * (self.pts + n) / 48000)) for n in range(960)]
        frame = AudioFrame(format="s16", layout="mono", samples=960)
        frame.planes[0].update(struct.pack("<960h", *samples))
        frame.sample_rate, frame.pts, frame.time_base = 48000, self.pts, fractions.Fraction(1, 48000)
        self.pts += 960
        return frame


class Watched:
    frames = 0
    bright = 0
    gaps = 0
    loud = 0

    async def video(self, track):
        last = None
        while True:
            frame = await track.recv()
            self.frames += 1
            luma = bytes(frame.planes[0])
            self.bright += max(luma) > BRIGHT - 30
            # By where the bar is, not by time: Node's timers are late now and then.
            at = next((x for x, y in enumerate(luma[: frame.width]) if y > (DARK + BRIGHT) // 2), 0)
            self.gaps += last is not None and (at - last) % PLACES > STEP * 3 // 2
            last = at

    async def audio(self, track):
        while True:
            frame = await track.recv()
            samples = struct.unpack("<%dh" % (len(bytes(frame.planes[0])) // 2), bytes(frame.planes[0]))
            self.loud += max(samples) > 6000


def post(url, offer):
    request = urllib.request.Request(url, offer.encode(), {"Content-Type": "application/sdp"})
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


async def main(role, url, server_port=None, relay_port=None):
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    watched = Watched()
    tasks = []
    if role == "publish":
        pc.addTrack(Picture())
        pc.addTrack(Tone())
    else:
        pc.addTransceiver("video", direction="recvonly")
        pc.addTransceiver("audio", direction="recvonly")
        pc.on("track", lambda t: tasks.append(asyncio.ensure_future(getattr(watched, t.kind)(t))))
    await pc.setLocalDescription(await pc.createOffer())
    answer = await asyncio.to_thread(post, url, pc.localDescription.sdp)
    say(answer=answer)
    if relay_port:
        answer = answer.replace(f" 127.0.0.1 {server_port} ", f" 127.0.0.1 {relay_port} ")
    await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    while True:
        await asyncio.sleep(0.2)
        for task in tasks:
            if task.done():
                task.result()
        stats = (await pc.getStats()).values()
        reports = [s for s in stats if s.type == "remote-outbound-rtp"]
        say(
            state=pc.connectionState,
            frames=watched.frames,
            bright=watched.bright,
            gaps=watched.gaps,
            loud=watched.loud,
            reports={s.kind: s.packetsSent for s in reports},
        )


asyncio.run(main(*sys.argv[1:]))
