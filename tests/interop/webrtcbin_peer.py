"""GStreamer's webrtcbin publishes or watches. Says how it fares five times a second, as JSON.

webrtcbin_peer.py publish WHIP_URL [FINGERPRINT PEM]
webrtcbin_peer.py watch WHEP_URL [FINGERPRINT PEM]

PEM is certificate and key that it shows in place of its own, which is RSA; FINGERPRINT is the certificate's SHA-256.
"""

import json
import re
import struct
import sys
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstSdp", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC

BRIGHT = 190
LOUD = 6000

VP8 = "application/x-rtp,media=video,encoding-name=VP8,clock-rate=90000,payload=96"
OPUS = "application/x-rtp,media=audio,encoding-name=OPUS,clock-rate=48000,encoding-params=(string)2,payload=97"
PUBLISH = f"""webrtcbin name=peer bundle-policy=max-bundle
    videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=30/1
    ! vp8enc deadline=1 cpu-used=8 ! rtpvp8pay picture-id-mode=15-bit ! {VP8} ! peer.
    audiotestsrc is-live=true freq=440 ! audioconvert ! opusenc ! rtpopuspay ! {OPUS} ! peer."""
# One element alone would come as no pipeline.
WATCH = "webrtcbin name=peer bundle-policy=max-bundle fakesink"

role, url, *other_certificate = sys.argv[1:]
Gst.init(None)
pipeline = Gst.parse_launch(PUBLISH if role == "publish" else WATCH)
peer = pipeline.get_by_name("peer")
fares = {"frames": 0, "bright": 0, "loud": 0}
# What Python lets go of, webrtcbin 1.22 uses all the same.
kept = []


def say(**what):
    print(json.dumps(what), flush=True)


def keep(thing):
    kept.append(thing)
    return thing


def show_other_certificate(_bin, _parent, element):
    factory = element.get_factory()
    if factory and factory.get_name() == "dtlssrtpdec":
        element.set_property("pem", other_certificate[1])


def add_transceivers():
    directions = GstWebRTC.WebRTCRTPTransceiverDirection
    if role == "watch":
        for caps in (VP8, OPUS):
            keep(peer.emit("add-transceiver", directions.RECVONLY, Gst.Caps.from_string(caps)))
    else:
        for n in range(2):
            keep(peer.emit("get-transceiver", n)).set_property("direction", directions.SENDONLY)


def negotiate(_peer):
    peer.disconnect(negotiation)
    peer.emit("create-offer", None, keep(Gst.Promise.new_with_change_func(take_offer, None)))


def take_offer(promise, _):
    offer = keep(keep(promise.get_reply()).get_value("offer"))
    peer.emit("set-local-description", offer, None)


def gathering_changed(*_):
    if peer.get_property("ice-gathering-state") == GstWebRTC.WebRTCICEGatheringState.COMPLETE:
        peer.disconnect(gathering)
        GLib.idle_add(exchange)


def exchange():
    offer = peer.get_property("local-description").sdp.as_text()
    if other_certificate:
        # It knows of its own only.
        offer = re.sub(r"a=fingerprint:[^\r]*", f"a=fingerprint:sha-256 {other_certificate[0]}", offer)
    request = urllib.request.Request(url, offer.encode(), {"Content-Type": "application/sdp"})
    with urllib.request.urlopen(request) as response:
        _, answer = GstSdp.SDPMessage.new_from_text(response.read().decode())
    description = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, answer)
    peer.emit("set-remote-description", keep(description), None)


def decode(_peer, pad):
    if pad.get_direction() == Gst.PadDirection.SRC:
        decoder = add("decodebin")
        decoder.connect("pad-added", judge)
        pad.link(decoder.get_static_pad("sink"))


def judge(_decoder, pad):
    sink = add("fakesink")
    sink.set_property("signal-handoffs", True)
    media = pad.get_current_caps().get_structure(0).get_name()
    sink.connect("handoff", judge_video if media.startswith("video") else judge_audio)
    pad.link(sink.get_static_pad("sink"))


def add(name):
    element = keep(Gst.ElementFactory.make(name))
    pipeline.add(element)
    element.sync_state_with_parent()
    return element


def judge_video(_sink, buffer, _pad):
    fares["frames"] += 1
    fares["bright"] += max(buffer.extract_dup(0, 320 * 240)) > BRIGHT


def judge_audio(_sink, buffer, _pad):
    samples = buffer.extract_dup(0, buffer.get_size())
    fares["loud"] += max(struct.unpack(f"<{len(samples) // 2}h", samples)) > LOUD


def report():
    peer.emit("get-stats", None, keep(Gst.Promise.new_with_change_func(take_stats, None)))
    return True


def take_stats(promise, _):
    stats = keep(promise.get_reply())
    streams = [stats.get_value(stats.nth_field_name(n)) for n in range(stats.n_fields())]
    inbound = [s for s in streams if s.get_name() == "inbound-rtp"]
    lost = [s.get_value("packets-lost") for s in inbound]
    say(state=peer.get_property("connection-state").value_nick, lost=lost, **fares)


# Or it leaves out loopback.
keep(peer.get_property("ice-agent")).emit("add-local-ip-address", "127.0.0.1")
if other_certificate:
    peer.connect("deep-element-added", show_other_certificate)
peer.connect("pad-added", decode)
negotiation = peer.connect("on-negotiation-needed", negotiate)
gathering = peer.connect("notify::ice-gathering-state", gathering_changed)
add_transceivers()
pipeline.set_state(Gst.State.PLAYING)
GLib.timeout_add(200, report)
GLib.MainLoop().run()
