"""The accelerator of this machine, as the driver reports it. Knows no torch and no model."""


def memory() -> int:
    """Bytes of memory of GPU 0, or 0 where there is no NVIDIA driver or no GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        if pynvml.nvmlDeviceGetCount() == 0:
            return 0
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total)
    finally:
        pynvml.nvmlShutdown()
