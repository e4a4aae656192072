"""Opens and seals by libsrtp what the test hands in, one JSON object a line; answers one line each.

{"session": any name, "profile": .., "key": hex of master key and salt, "do": "open_rtp", "data": hex}
"""

import json
import sys

from pylibsrtp import Error, Policy, Session

PROFILES = {
    "AEAD_AES_128_GCM": Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    "AEAD_AES_256_GCM": Policy.SRTP_PROFILE_AEAD_AES_256_GCM,
    "AES_CM_128_HMAC_SHA1_80": Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
}

sessions = {}


def session(order):
    outbound = order["do"].startswith("seal")
    name = (order["session"], outbound)
    if name not in sessions:
        ssrc_type = Policy.SSRC_ANY_OUTBOUND if outbound else Policy.SSRC_ANY_INBOUND
        key = bytes.fromhex(order["key"])
        sessions[name] = Session(Policy(key=key, ssrc_type=ssrc_type, srtp_profile=PROFILES[order["profile"]]))
    return sessions[name]


for line in sys.stdin:
    order = json.loads(line)
    libsrtp = session(order)
    work = {
        "open_rtp": libsrtp.unprotect,
        "open_rtcp": libsrtp.unprotect_rtcp,
        "seal_rtp": libsrtp.protect,
        "seal_rtcp": libsrtp.protect_rtcp,
    }[order["do"]]
    try:
        print(json.dumps({"ok": work(bytes.fromhex(order["data"])).hex()}))
    except Error as error:
        print(json.dumps({"error": str(error)}))
