"""What a user says of the drafters to SGLang: `D2SD_SGLANG='{"first": …}'` in the environment.

SGLang's own arguments have no room for it, and it takes `--speculative-draft-model-path` for a
model of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from d2sd.engines.batches.settings import KEY, Settings

VARIABLE = "D2SD_SGLANG"


def settings_of(environment: Mapping[str, str], rows: int) -> Settings:
    """From the environment and SGLang's `speculative_num_draft_tokens`, the anchor counted.

    Raises ValueError.
    """
    try:
        values = json.loads(environment.get(VARIABLE, ""))
    except ValueError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("first"), str):
        raise ValueError(
            f"d2sd is told its drafters by the environment variable {VARIABLE}="
            '\'{"first": "FOLDER", "second": "FOLDER"}\', which is to be JSON with a "first"'
        )
    return Settings.of({KEY: values}, rows - 1)
