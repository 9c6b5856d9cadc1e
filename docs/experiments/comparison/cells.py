"""The cells of docs/comparison.md that a person wrote, each with how it is known.

A cell is its words and its sources: an https address (of a file at the commit that was read), a page of ours, a file
of the library in the version that was run, README (its page on PyPI), or SEARCHED (searches.py has the patterns). None
have only cells about this library, "not its job" and "not checked". A run has its probe and a note.
"""

from __future__ import annotations

Cell = tuple[str, ...]  # words, then sources

AIS = "https://github.com/IBM/AISteer360/blob/"
AIS_GUIDE = f"{AIS}22f86cff433dd1691199afb78fe6f55a329c97ca/AGENTS.md"
AIS_MERGE = f"{AIS}d458602016805eeca76cc32dd915b7f2d1d4b59d/aisteer360/algorithms/core/utils/controls.py"
AIS_TRL = f"{AIS}25841e8b096c93d4435f8852cd240b00852e94f3/aisteer360/algorithms/structural_control/wrappers/trl/"
AIS_OUTPUT = f"{AIS}d458602016805eeca76cc32dd915b7f2d1d4b59d/aisteer360/algorithms/output_control/"
AIS_STATE = f"{AIS}22f86cff433dd1691199afb78fe6f55a329c97ca/aisteer360/algorithms/state_control/base.py"
AIS_ITI = f"{AIS}194fdc5cbb8003c2a851d5a0ef39efe0b16164eb/aisteer360/algorithms/state_control/iti/control.py"
AIS_PASTA = f"{AIS}0314881cb7777fb69cbdc51c1f654d75ffa7d90e/aisteer360/algorithms/state_control/pasta/control.py"
AIS_VECTOR = (
    f"{AIS}51b61df5a3bdfcf08238ea6fe7f93ebf72942cc9/aisteer360/algorithms/state_control/_common/steering_vector.py"
)
AIS_CONTRAST = f"{AIS_OUTPUT}contrastive_decoding/control.py"
AIS_PINS = f"{AIS}1d7c84314b19341ac78c9ae4ee1eabf4e2f58632/pyproject.toml"
NDIF = (
    "https://github.com/stanfordnlp/pyvene/blob/b28797c0ca3dbe0efd2f5b05c9e244fcda1e7f6d/"
    "tutorials/basic_tutorials/ndif_backend_101.ipynb"
)
HONEST = "https://github.com/likenneth/honest_llama/blob/16619677ede6ec5b752b01c59b51cda6987f1ef4/README.md"
PEFT = "https://github.com/huggingface/peft/blob/"
PEFT_FSDP = f"{PEFT}018ca9d6f6dc9e77c7e458af816bd27681f7874d/docs/source/accelerate/fsdp.md"
PEFT_DEEPSPEED = f"{PEFT}09802c1b43fff9b087be42e149d70e5350ff407a/docs/source/accelerate/deepspeed.md"
PEFT_QUANT = f"{PEFT}007b249cf2970f7e0ee7e8d59f1f150c1fab404d/docs/source/developer_guides/quantization.md"

README = "README"  # of the version that was run, as PyPI shows it
SEARCHED = "SEARCHED"
COLUMNS = ("steer", "nnsight", "transformer_lens", "pyvene", "repsteer", "kvpress", "aisteer360", "peft")
NO = ("no", SEARCHED)
OUT = ("not its job",)
AIS_NO = ("no: not in its list of controls", AIS_GUIDE)

# Row by row: what is asked, and a cell for each column.
WRITTEN: dict[str, tuple[Cell, ...]] = {
    "what it is for": (
        ("methods that steer vision-language models, on one engine", "methods.md"),
        ("**any edit of any value in a forward**, and running it on shared machines", README),
        ("**reading a model's mechanism**: every activation cached, by the same names for all models", README),
        ("interventions as objects, trained too: **causal abstraction**", README, "pyvene/models/interventions.py"),
        ("directions from contrastive texts, applied at named sites", README),
        ("**pruning the cache of long contexts**", README),
        (
            "steering pipelines of prompts, weights, states and decoding, with benchmarks; text models",
            AIS_GUIDE,
        ),
        ("**training adapters**", README),
    ),
    "how a place is named": (
        ("one address for all models, read from the model's structure", "architectures.md"),
        (
            "the module's path in this model; `.source` for what is inside a forward",
            README,
            "nnsight/intervention/source.py",
        ),
        (
            "one set of hook names, by an adapter for each of 162 names of classes",
            "transformer_lens/factories/architecture_adapter_factory.py",
        ),
        (
            "a word for the models in its list, else the module's path",
            "pyvene/models/intervenable_modelcard.py",
            "pyvene/models/modeling_utils.py",
        ),
        (
            "a named site, by an adapter for each of 7 architectures",
            "repsteer/sites.py",
            "repsteer/models/hf/adapters/registry.py",
        ),
        (
            "all attention layers of `model.model.language_model` or `model.model`",
            "kvpress/presses/base_press.py",
        ),
        ("the module's path; its own methods look for the layers", AIS_STATE, AIS_ITI),
        ("modules' names, or a regular expression over paths", "peft/tuners/tuners_utils.py"),
    ),
    "arbitrary edits between any two lines of a forward": (
        ("no: named sites only",),
        ("**yes**", "nnsight/intervention/source.py"),
        (
            "at its hook points, of which attention has many",
            "transformer_lens/model_bridge/generalized_components/position_embeddings_attention.py",
        ),
        ("between modules", "pyvene/models/modeling_utils.py"),
        ("no: named sites only", "repsteer/sites.py"),
        OUT,
        ("between modules, by a control of one's own", AIS_STATE),
        OUT,
    ),
    "runs on models that others host": (
        ("no",),
        ("**yes**: NDIF", README, "nnsight/modeling/mixins/remotable.py"),
        ("vLLM workers and Inspect's providers, fewer hook points", "transformer_lens/model_bridge/remote_bridge.py"),
        (
            "not in 0.1.8, where `remote` is taken and not used; the repository has it since, by nnsight",
            "pyvene/models/intervenable_base.py",
            NDIF,
        ),
        NO,
        NO,
        ("no: in the current process", AIS_GUIDE),
        NO,
    ),
    "learns vectors": (
        ("LIVE, MimIC, Hyper-ICL, HiFICL, function vectors, gates, ...", "methods.md"),
        ("you write the loop; gradients pass", README),
        (
            "DAS, sparse probes, Jacobian lens",
            "transformer_lens/tools/analysis/interchange.py",
            "transformer_lens/tools/analysis/sparse_probing.py",
            "transformer_lens/tools/analysis/jacobian_lens.py",
        ),
        ("**any trainable intervention**: DAS, boundless DAS, masks, autoencoders", "pyvene/models/interventions.py"),
        ("difference of means, PCA, LAT, ActAdd, CAA, ITI, probes", "repsteer/learners/__init__.py"),
        OUT,
        ("ActAdd, CAA, CAST, ITI, angular steering, ablation, adapters made of such parts", AIS_GUIDE),
        (
            "**LoRA and 44 other types**; (IA)3 scales activations",
            "peft/utils/peft_types.py",
            "peft/tuners/ia3/layer.py",
        ),
    ),
    "adapters on weights (LoRA) in these 8": (
        ("no",),
        ("loads trained ones, through PEFT; not run", "nnsight/modeling/peft.py"),
        NO,
        NO,
        NO,
        ("inside one press; not run", "kvpress/presses/restorekv_press.py"),
        ("not run; trained through PEFT, for causal language models", f"{AIS_TRL}args.py"),
        ("run: lora_everywhere", ""),
    ),
    "training at scale": (
        ("DDP and FSDP2 by accelerate, small fits; tested on CPUs only", "distributed.md"),
        ("yours", README),
        ("its own loop for language models, one device", "transformer_lens/tools/training.py"),
        ("its own loop, one device", "pyvene/models/intervenable_base.py"),
        NO,
        OUT,
        ("by TRL and PEFT", f"{AIS_TRL}args.py", AIS_PINS),
        (
            "**Trainer, TRL, FSDP, DeepSpeed, quantised bases**",
            README,
            PEFT_FSDP,
            PEFT_DEEPSPEED,
            PEFT_QUANT,
        ),
    ),
    "a model in parts": (
        ("`device_map`; tensor-parallel inference, tested on CPUs only", "large-models.md"),
        (
            "`device_map`, tensor-parallel inference, vLLM",
            "nnsight/modeling/tp/__init__.py",
            "nnsight/modeling/vllm/vllm.py",
        ),
        ("`device_map`, vLLM", "transformer_lens/model_bridge/sources/transformers/source.py"),
        ("not checked",),
        ("not checked",),
        ("`device_map`", README),
        ("`device_map`", AIS_GUIDE),
        ("what accelerate does", README),
    ),
    "prompt learning for CLIP": (
        ("CoOp, CoCoOp, MaPLe, CoPrompt, PromptSRC, ...", "methods.md"),
        NO,
        NO,
        NO,
        NO,
        NO,
        ("no: for causal language models", AIS_GUIDE),
        ("run: prompt_on_clip", "prompt tuning around the whole model, or its text half"),
    ),
    "hallucination methods": (
        (
            "VCD, PAI, PASTA, ITI, image_focus; what is not fitted did not help on our small model",
            "results/reliability.md",
        ),
        NO,
        NO,
        ("none in the package; ITI's published shifts load into it", SEARCHED, HONEST),
        ("ITI; records of evaluations", "repsteer/learners/iti.py", "repsteer/evaluation/multimodal.py"),
        OUT,
        ("ITI, PASTA, contrastive decoding; text only", AIS_ITI, AIS_PASTA, AIS_CONTRAST),
        NO,
    ),
    "presses, or rules of pruning": (
        ("12", "methods.md"),
        NO,
        NO,
        NO,
        NO,
        ("**more than 40 presses, a leaderboard, long-context benchmarks**", README),
        AIS_NO,
        NO,
    ),
    "several methods at once": (
        ("any number, in order", "methods.md"),
        ("anything in one trace", README),
        ("any number of hooks, in order", "transformer_lens/model_bridge/bridge_core.py"),
        ("yes", README),
        ("a plan with priorities and conflicts shown", "repsteer/runtime/composition.py"),
        ("composed presses", "kvpress/presses/composed_press.py"),
        ("any number, in order; one that owns the loop of decoding", AIS_MERGE),
        ("several adapters", "peft/peft_model.py"),
    ),
    "checkpoints that run without it": (
        ("static shifts folded into biases", "serving.md"),
        NO,
        NO,
        NO,
        NO,
        NO,
        ("trained, merged and MergeKit's weights", f"{AIS_TRL}base_mixin.py", AIS_GUIDE),
        ("run: merged", "**merged adapters**, any of them that are weights"),
    ),
    "a method by somebody else": (
        ("an installed package with an entry point", "plugins.md"),
        OUT,
        (
            "an architecture, by an installed package with an entry point; no methods",
            "transformer_lens/factories/architecture_adapter_factory.py",
        ),
        ("a subclass", "pyvene/models/interventions.py"),
        ("a subclass", "repsteer/operators/base.py"),
        ("a subclass", "kvpress/presses/base_press.py"),
        ("a subclass; its list knows its own tree", AIS_GUIDE),
        ("a tuner in its tree", "peft/utils/peft_types.py"),
    ),
}

# Cells of the rows that are run, for libraries that had nothing to run there.
READ: dict[tuple[str, str], Cell] = {
    ("pyvene", "bias_scores"): ("no: modules' inputs and outputs", "pyvene/models/modeling_utils.py"),
    ("repsteer", "bias_scores"): ("no: not one of its sites", "repsteer/sites.py"),
    ("nnsight", "save"): ("saves nothing",),
    ("transformer_lens", "save"): ("saves no edits",),
    ("kvpress", "save"): ("saves nothing",),
    ("aisteer360", "heads"): ("not run; ITI shifts heads where they enter `o_proj`", AIS_ITI),
    ("aisteer360", "bias_scores"): ("not run; PASTA adds to the mask, for chosen heads", AIS_PASTA),
    ("aisteer360", "fail_inside"): ("not run; hooks live in a context", AIS_STATE),
    ("aisteer360", "save"): ("not run; vectors are JSON", AIS_VECTOR),
    ("aisteer360", "prune"): AIS_NO,
    ("aisteer360", "prune_heads"): AIS_NO,
} | {
    (column, key): NO
    for column in ("nnsight", "transformer_lens", "pyvene", "repsteer")
    for key in ("prune", "prune_heads")
}
