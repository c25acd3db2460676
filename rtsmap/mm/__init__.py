"""The only folder that imports mmdet, mmengine and mmcv: detector, training, checkpoints."""
