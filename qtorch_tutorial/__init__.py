"""The companion package of The Quantized Torch: quantized linear modules, from scratch.

Import what you need from its modules; importing the package itself does nothing else.

=============  ======================================================================
``affine``     scale, zero point, quantize, dequantize, fake-quantize
``tale``       the claims of the tale; a sentence of the book becomes a check
``repro``      seeds, threads, engines, what machine this is
``data``       real digits in the wheel; Fashion-MNIST on request
``models``     the float network of the tale
``layers``     the linear modules in integers, bit for bit
``measure``    bytes, error, accuracy, time
``train``      one training loop
``convert``    a float model in, a new quantized model out
``compare``    forms side by side; the break-even grid
``search``     the best settings: bytes against error
``plot``       figures
``checks``     the checks of the exercises
``cli``        ``qtorch doctor`` and ``qtorch trial``
=============  ======================================================================
"""
