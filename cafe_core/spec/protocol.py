"""Define the evaluation protocols: the published ways to train networks on a synthetic set, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

Protocol = Literal["paper", "reference", "dc-bench", "dance"]
Schedule = Literal["tenth_at_half", "fifths_at_the_end"]


def protocol_fields(protocol: Protocol, augmentations: Sequence[str] | None, *, grey_digits: bool) -> dict[str, Any]:
    """Return the fields of an evaluation by a protocol.

    augmentations: those that the user has chosen, on which the number of epochs depends; None: the protocol chooses.

    =========  =====================================================================================================
    paper      CAFE's paper: 300 epochs, learning rate ×0.1 at half of them, batch 256, no augmentation
    reference  CAFE's released code: 600 epochs, or 1,000 with augmentation; crop·scale·rotate for grey digits (MNIST)
    dc-bench   DC-BENCH's released code (Cui et al., NeurIPS 2022): 300 epochs, or 1,000 with augmentation; as above
    dance      DANCE's and IDC's released code: 1,500 epochs, ×0.2 at 2/3 and at 5/6 of them, batch 64, DSA without
               cutout, CutMix with probability 0.5
    =========  =====================================================================================================
    """
    fields: dict[str, Any] = {"batch": 256, "schedule": "tenth_at_half", "cutmix": 0.0, "epochs": 300, "augment": "none"}
    match protocol:
        case "paper":
            return fields
        case "dance":
            return {
                "batch": 64,
                "schedule": "fifths_at_the_end",
                "cutmix": 0.5,
                "epochs": 1500,
                "augment": "dsa_without_cutout",
            }
        case "reference" | "dc-bench":
            fields["augment"] = "crop_scale_rotate" if grey_digits else "none"
            augmented = any(name != "none" for name in augmentations or [fields["augment"]])
            fields["epochs"] = 1000 if augmented else 600 if protocol == "reference" else 300
            return fields
