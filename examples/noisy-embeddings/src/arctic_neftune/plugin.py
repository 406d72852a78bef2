"""What this plugin offers to Arctic: a section of the recipe, and a wrapper around the hook that builds models."""

from arctic_training import hookimpl


@hookimpl
def arctic_register_config_sections():
    from arctic_neftune.noise import NeftuneConfig

    return {"neftune": NeftuneConfig}


@hookimpl(wrapper=True)
def arctic_build_model(model_config, config, run):
    from arctic_neftune.noise import put_into

    model = yield
    if alpha := run.config.sections["neftune"].alpha:
        put_into(model, alpha)
    return model
