"""The model as a pipeline of the diffusers library: ``MMLDMPipeline``, and the folders that it is loaded from.

    pipe = MMLDMPipeline.from_pretrained("weights/dit_S", torch_dtype=torch.float16).to("cuda")
    output = pipe(task="svg", num_inference_steps=50, generator=torch.Generator().manual_seed(0))

:mod:`.pipeline` samples, :mod:`.parts` holds the parts that diffusers has no class for, :mod:`.loading` reads a folder,
:mod:`.folder` writes one, with :mod:`.model_card` and the code for programs without this package
(:mod:`.folder_code`), and :mod:`.hub` uploads it.
"""
