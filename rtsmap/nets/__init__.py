"""Networks in plain torch; constructors take numbers. Never imports mmdet, mmengine or mmcv."""
