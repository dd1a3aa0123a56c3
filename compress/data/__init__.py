"""Data sets as samples: COCO, MPII, LSP and LIP folders, plain images and drawn people."""
