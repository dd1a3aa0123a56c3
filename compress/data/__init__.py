"""Data sets as samples: COCO folders, plain images and drawn people."""
