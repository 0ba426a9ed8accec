"""pytest plugin: run timm's own tests/test_models.py on the models of this package alone.

timm's tests are parametrised over ``timm.list_models()`` or over names written in the file. The
first kind sees only our models because ``list_models`` is replaced before collection; nine of
the second kind state contracts that hold for any model and get ``test_toponet`` instead. All other
tests are deselected, and so are those of scripting: ``torch.jit.script`` is deprecated, and this
package does not support it.
"""

import pytest
import timm
from timm.models import _registry as registry

import timm_topo  # noqa: F401  registers the models

MODULES = [
    'toponet', 'toporesnet', 'topomobilenet', 'rewired', 'dgnet', 'dagnet', 'maskconnect',
    'maskconnect_resnext', 'randwire',
]  # fmt: skip
#: The other sizes of a network differ in depth and width alone: its tests take one.
SIZES = [
    'toponet_random[84]', 'toponet_residual[34]', 'resnet_cifar[!2]*', 'resnetv2_cifar[!2]*',
    'toporesnet[!2]*', 'mobilenetv2_[46]n', 'topomobilenetv2_[246]n', 'dgnet_resnet101',
    'dgnet_regnetx_016', 'dagnet', 'dagnet60', 'maskconnect_*', 'randwire_[ebc]*',
    'dgnet_randwire_small',
]  # fmt: skip
OURS = set(registry.list_models(module=MODULES, exclude_filters=SIZES))
LEAST_PER_MODEL = 9  # list-driven tests in timm 1.0.31, but for those of scripting

timm_list_models = registry.list_models


def list_models(filter='', module='', *args, **kwargs):
    """timm's function, whatever ``module`` says, over our modules."""
    names = timm_list_models(filter, MODULES, *args, **kwargs)
    return [name for name in names if name.partition('.')[0] in OURS]


for place in (timm, timm.models, registry):
    place.list_models = list_models

SMALL = 'test_toponet'
NAMED = {
    'test_reset_classifier_keeps_pool': [SMALL],
    'test_features_only_grad_checkpointing_backward': [SMALL],
    'test_model_features_output_stride': [SMALL],
    'test_prune_intermediate_layers_params_used': [SMALL],
    'test_features_only_feature_cls_class': [SMALL],
    'test_head_hidden_size': [(SMALL, {})],
    'test_model_init_weights_after_to_empty': [(SMALL, {})],
    'test_headless_checkpoint_reload': [(SMALL, {})],
    'test_prune_intermediate_layers_last_feature': [(SMALL, False)],
}


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    values = NAMED.get(metafunc.function.__name__)
    if not values:
        return
    for mark in metafunc.definition.iter_markers('parametrize'):
        names = mark.args[0]
        names = [n.strip() for n in names.split(',')] if isinstance(names, str) else list(names)
        if 'model_name' in names:
            mark.args[1][:] = values


def _is_ours(item) -> bool:
    name = item.callspec.params.get('model_name') if hasattr(item, 'callspec') else None
    return (
        isinstance(name, str)
        and name.partition('.')[0] in OURS
        and 'torchscript' not in item.originalname
    )


def pytest_collection_modifyitems(config, items):
    chosen = [item for item in items if _is_ours(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _is_ours(item)])
    items[:] = chosen
    if len(chosen) < LEAST_PER_MODEL * len(OURS) + len(NAMED):
        raise pytest.UsageError(
            f"only {len(chosen)} of timm's tests fit our {len(OURS)} models: has timm changed?"
        )
