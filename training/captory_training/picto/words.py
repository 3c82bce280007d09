"""The wording shared by the caption writer and the caption reader."""

NUMBER_WORDS: dict[int, str] = {1: "one", 2: "two", 3: "three", 4: "four"}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("on grass", "on the grass"),
    "sand": ("on sand", "on the sand"),
    "sea": ("on the sea", "at sea"),
    "night": ("under a night sky", "at night"),
    "snow": ("in the snow", "on snow"),
    "brick": ("on a brick wall", "by a brick wall"),
}
POSITION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left of the picture"),
    "right": ("on the right", "on the right of the picture"),
    "top": ("at the top", "at the top of the picture"),
    "bottom": ("at the bottom", "at the bottom of the picture"),
    "centre": ("in the centre", "in the centre of the picture"),
}
LIGHT_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("lit from the left", "with light from the left"),
    "right": ("lit from the right", "with light from the right"),
}
AGE_WORDS: dict[str, str] = {"child": "young", "adult": "adult", "old": "old"}
