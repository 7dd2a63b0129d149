"""Arithmetic of attention in bfloat16."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin.networks import blocks


def test_attention_adds_its_products_in_float32():
    """Rounded to bfloat16, a logit of 15 is off by up to 1/16: a weight by 6 %."""
    block = blocks.AttentionBlock(groups=2, heads=1, dtype=jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 8)), jnp.bfloat16)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x))
    text = str(jax.make_jaxpr(block.apply)(shapes, x))
    assert re.search(r":f32\[1,1,16,16\] = dot_general", text)
    assert not re.search(r":bf16\[1,1,16,16\] = dot_general", text)
