"""From files of pictures and videos to uint8 patches."""
