"""`make demo`: the main job of outputd, played and explained in half a minute. Never leaves anything behind."""
