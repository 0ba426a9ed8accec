"""Classification training out of timm's own parts; ``tools/train.py`` is its command."""
