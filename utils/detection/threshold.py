"""The confidence above which detections are worth showing: recommended by an evaluation, kept with the weights it evaluated.

What scores mean differs from network to network: objectness learns the overlap with the target, and after a short training
even good boxes score low. So the threshold is the one where F1 on the validation images is best, and not a constant.
"""

CONF_THRES = "conf_thres"  # field of a checkpoint, and of an ONNX file's metadata; None or absent where nothing was evaluated
USUAL = 0.3  # where nothing is recommended


def choose_threshold(given: float | None, recommended: float | None, origin: str) -> float:
    """The threshold that was given, else the one that `origin` recommends, which is said, else the usual one."""
    if given is not None:
        return given
    if recommended is None:
        return USUAL
    print(f"confidence threshold {recommended:g}, recommended by the {origin}")
    return recommended


def threshold_line(threshold: float | None, origin: str) -> str:
    """What an evaluation says of its recommendation; origin: the file that keeps it, "" for none."""
    if threshold is None:
        return f"no confidence threshold to recommend: nothing was found; detect.py's is {USUAL}"
    kept = f", kept in {origin}" if origin else ""
    return f"recommended confidence threshold {threshold:g}: F1 is best there{kept}"
