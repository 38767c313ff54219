# One measurement of a synthetic set, such as its sharpness or its errors along the experts' path.
rule analysis:
    input:
        data=campaigns.prepared,
        experts=campaigns.measured_along,
        distilled=rules.distill.output.distilled,
    output:
        rows=layout.analysis("{what}", PATTERN),
    log:
        layout.log("{what}", *PATTERN.place),
    benchmark:
        layout.benchmark("{what}", *PATTERN.place)
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=240,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.analysis_options,
        revision=REVISIONS["analyse"],
    shell:
        "python -m satm analyse --config {params.config:q} --what {wildcards.what} --dataset {wildcards.dataset}"
        " --ipc {wildcards.ipc} --method {wildcards.method} --seed {wildcards.seed} --threads {threads} > {log} 2>&1"


rule expert_sharpness:
    input:
        data=campaigns.prepared,
        experts=rules.experts.output.manifest,
    output:
        sharpness=layout.expert_sharpness("{dataset}", "{experts}"),
    log:
        layout.log("expert-sharpness", "{dataset}", "{experts}"),
    benchmark:
        layout.benchmark("expert-sharpness", "{dataset}", "{experts}")
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=240,
        gpu=0,
    params:
        config=campaigns.config,
        revision=REVISIONS["analyse"],
    shell:
        "python -m satm analyse --config {params.config:q} --what expert-sharpness --dataset {wildcards.dataset}"
        " --experts {wildcards.experts} --threads {threads} > {log} 2>&1"
