"""Mixtures of experts come in from GGUF code for code, beside what transformers makes of the file
in floats, and llama.cpp."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.errors import InputError
from lowbit.formats import ExpertsTensor, decode, group
from lowbit.interop.export_checkpoint import export_checkpoint
from lowbit.interop.gguf.blocks import TYPES, pack
from lowbit.interop.gguf.grids import to_blocks
from lowbit.interop.gguf.vocabulary import vocabulary
from lowbit.interop.gguf.writer import NewTensor, write_file
from lowbit.interop.import_checkpoint import import_checkpoint
from lowbit.interop.stored_model import open_stored
from lowbit.schemes import Absmax, KQuant
from tests.interop.gguf.folders import DECODER, TEXT, VOCABULARY, byte_level

gguf = pytest.importorskip("gguf", reason="the package gguf is absent")
# The inner size is what transformers, which does not read it from files, has by default.
EXPERTS, INNER = 6, 768
SCHEMES = {"Q4_0": Absmax(4, group(32)), "Q8_0": Absmax(8, group(32)), "Q3_K": KQuant(3)}


def mixture():
    torch.manual_seed(0)
    own = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": INNER}
    own |= {"head_dim": 16, "norm_topk_prob": True, "vocab_size": VOCABULARY}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**DECODER | own)).eval()


def blocks(weights, kind):
    """uint8 [experts, rows, bytes] of experts [experts, rows, columns]."""
    each = (SCHEMES[kind].quantize(one) for one in weights)
    return torch.stack([pack(TYPES[kind], to_blocks(q, kind)) for q in each])


def written(file, gate="Q4_0", up="Q4_0", down="Q3_K"):
    """A file of the mixture, all but its experts in float32."""
    model, tokenizer = mixture(), byte_level("qwen2")
    # transformers gives it to every such tokenizer; those of real files have it.
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, config.num_hidden_layers)
    tensors = []
    for own, tensor in model.state_dict().items():
        module, _, parameter = own.rpartition(".")
        if parameter == "gate_up_proj":
            layer = own.split(".")[2]
            for part, kind, half in (("gate", gate, 0), ("up", up, 1)):
                weights = tensor.unflatten(1, (2, -1))[:, half]
                tensors.append((f"blk.{layer}.ffn_{part}_exps.weight", kind, weights))
        elif parameter == "down_proj":
            tensors.append((f"blk.{own.split('.')[2]}.ffn_down_exps.weight", down, tensor))
        else:
            tensors.append((f"{names.get_name(module)}.{parameter}", "F32", tensor))
    new = [
        NewTensor(
            name,
            kind,
            tuple(tensor.shape),
            lambda t=tensor, k=kind: t if k == "F32" else blocks(t, k),
        )
        for name, kind, tensor in tensors
    ]
    numbers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "vocab_size": VOCABULARY,
        "expert_count": EXPERTS,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": INNER,
    }
    metadata = {"general.architecture": "qwen3moe"}
    metadata |= {f"qwen3moe.{key}": value for key, value in numbers.items()}
    write_file(file, metadata | vocabulary(tokenizer, VOCABULARY), new)
    return file


def test_experts_are_taken_over_code_for_code(tmp_path):
    file = written(tmp_path / "moe.gguf")
    result = import_checkpoint(file, tmp_path / "ours", progress=False)
    assert result.notes[0].startswith("The codes of 4 weights were kept")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    with open_stored(tmp_path / "ours") as model:
        for layer in range(2):
            place = f"model.layers.{layer}.mlp.experts"
            together = model.owners[f"{place}.gate_up_proj"].read()
            down = model.owners[f"{place}.down_proj"].read()
            assert isinstance(together, ExpertsTensor) and down.layout.each == KQuant(3).layout(1)
            parts = [
                gguf.dequantize(tensor.data, tensor.tensor_type)
                for part in ("gate", "up", "down")
                for tensor in [stored[f"blk.{layer}.ffn_{part}_exps.weight"]]
            ]
            expected = np.concatenate(parts[:2], 1).reshape(-1, DECODER["hidden_size"])
            np.testing.assert_array_equal(decode(together).numpy(), expected)
            np.testing.assert_array_equal(decode(down).numpy(), parts[2].reshape(-1, INNER))


def test_the_model_computes_what_transformers_makes_of_the_file(tmp_path):
    file = written(tmp_path / "moe.gguf")
    import_checkpoint(file, tmp_path / "ours", progress=False)
    ids = torch.arange(1, 25)[None]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype="float32")
    # Their config leaves out that chosen experts' shares add up to 1, as those of the file do.
    expected = mixture()
    expected.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        found = load_model(tmp_path / "ours")(ids).logits
        torch.testing.assert_close(found, expected(ids).logits, rtol=1e-3, atol=1e-4)


def test_gates_of_another_type_than_the_rest_are_floats(tmp_path):
    file = written(tmp_path / "moe.gguf", gate="Q8_0")
    import_checkpoint(file, tmp_path / "ours", progress=False)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    gate = stored["blk.0.ffn_gate_exps.weight"]
    with open_stored(tmp_path / "ours") as model:
        assert list(model.owners) == [f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)]
        found = model.floats["model.layers.0.mlp.experts.gate_up_proj"][...]
    expected = gguf.dequantize(gate.data, gate.tensor_type)
    np.testing.assert_array_equal(found[:, :INNER].numpy(), expected)


def test_experts_of_another_number_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.interop.gguf.test_experts.EXPERTS", 4)
    small = written(tmp_path / "moe.gguf").read_bytes()
    key = b"qwen3moe.expert_count" + (4).to_bytes(4, "little")
    assert key + (4).to_bytes(4, "little") in small
    new = key + (5).to_bytes(4, "little")
    (tmp_path / "moe.gguf").write_bytes(small.replace(key + (4).to_bytes(4, "little"), new))
    with pytest.raises(InputError, match="shape"):
        import_checkpoint(tmp_path / "moe.gguf", tmp_path / "ours", progress=False)
    assert not (tmp_path / "ours").exists()


def test_they_go_out_as_the_bytes_that_came_in(tmp_path):
    """Quantized or float: gates of two types are decoded on the way in, and stay floats."""
    for name, gate in (("one", "Q4_0"), ("two", "Q8_0")):
        file = written(tmp_path / f"{name}.gguf", gate=gate)
        import_checkpoint(file, tmp_path / name, progress=False)
        export_checkpoint(tmp_path / name, "gguf", tmp_path / f"{name}-again.gguf")
        before, after = (
            {tensor.name: tensor for tensor in gguf.GGUFReader(each).tensors}
            for each in (file, tmp_path / f"{name}-again.gguf")
        )
        assert before.keys() == after.keys()
        for own, tensor in before.items():
            if after[own].tensor_type == tensor.tensor_type:
                np.testing.assert_array_equal(after[own].data, tensor.data, err_msg=own)
            else:
                assert gate == "Q8_0" and after[own].tensor_type.name == "F32", own
                found = gguf.dequantize(tensor.data, tensor.tensor_type)
                np.testing.assert_array_equal(after[own].data, found, err_msg=own)


@pytest.mark.slow
def test_llama_cpp_computes_the_same(tmp_path):
    llama_cpp_model = pytest.importorskip("tests.interop.gguf.llama_cpp_model")
    import_checkpoint(written(tmp_path / "moe.gguf"), tmp_path / "ours", progress=False)
    file = tmp_path / "again.gguf"
    export_checkpoint(tmp_path / "ours", "gguf", file)
    ids = load_tokenizer(tmp_path / "ours")(TEXT).input_ids
    peer = llama_cpp_model.LlamaCpp(file)
    assert peer.tokens(TEXT) == ids
    with torch.no_grad():
        expected = load_model(tmp_path / "ours")(torch.tensor([ids])).logits[0].numpy()
    away = peer.logits(ids) - expected
    assert np.linalg.norm(away) < 4e-2 * np.linalg.norm(expected)
