"""What openpi's own client does, run by an interpreter that has `openpi-client` 0.1.2 and NumPy 1 (see test_openpi).

python openpi_talk.py record FILE            the frames that its packer makes of `messages()`
python openpi_talk.py talk URI WRONG_KEY_URI KEY   a conversation with a server; prints JSON
"""

import base64
import json
import sys

import numpy as np


def messages():
    """Everything that its packer can express."""
    rng = np.random.default_rng(0)
    return {
        "observation": {
            "observation.images.scene": rng.integers(0, 256, (4, 5, 3), dtype=np.uint8),
            "observation.state": np.array([0.5, -1.25, 3.0], np.float32),
            "task": "reach the red cube",
        },
        "nested": {"images": {"cam": np.zeros((1, 2, 3), np.uint8)}, "state": np.arange(3.0)},
        "scalars": {
            "f": np.float32(1.5),
            "i": np.int64(-7),
            "u": np.uint8(200),
            "b": np.bool_(True),
            "d": np.float64(0.1),
        },
        "plain": {"none": None, "true": True, "int": 2**40, "float": 0.1, "text": "größe", "list": [1, "two", 3.0]},
        "orders": {
            "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
            "big": np.arange(3, dtype=">f4"),
            "bools": np.array([True, False]),
            "empty": np.zeros((0, 3), np.float32),
            "point": np.array(2.5),
            "half": np.array([1.5], np.float16),
        },
    }


def record(path):
    from openpi_client import msgpack_numpy

    frames = {name: base64.b64encode(msgpack_numpy.packb(m)).decode() for name, m in messages().items()}
    with open(path, "w") as file:
        json.dump(frames, file, indent=1)
        file.write("\n")


def talk(uri, other_uri, key):
    from openpi_client.action_chunk_broker import ActionChunkBroker
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    def observation():
        return {
            "observation/images/scene": np.zeros((16, 16, 3), np.uint8),
            "observation/state": np.zeros(3, np.float32),
            "prompt": "reach",
        }

    def outcome(action):
        try:
            return action()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    told = {}
    client = WebsocketClientPolicy(uri, None, key)
    told["metadata"] = client.get_server_metadata()
    replies = [client.infer(observation()) for _ in range(2)]
    told["shape"], told["dtype"] = replies[0]["actions"].shape, str(replies[0]["actions"].dtype)
    told["timing"] = [sorted(r["server_timing"]) + sorted(r["policy_timing"]) for r in replies]
    broker = ActionChunkBroker(client, 2)
    told["broker"] = [broker.infer(observation())["actions"].shape for _ in range(3)]
    told["error"] = outcome(lambda: client.infer({"prompt": "reach"}))
    told["after_error"] = outcome(lambda: client.infer(observation()))
    told["wrong_key"] = outcome(lambda: WebsocketClientPolicy(other_uri, None, "wrong" + key))
    told["no_key"] = outcome(lambda: WebsocketClientPolicy(other_uri))
    print(json.dumps(told))


if __name__ == "__main__":
    {"record": record, "talk": talk}[sys.argv[1]](*sys.argv[2:])
