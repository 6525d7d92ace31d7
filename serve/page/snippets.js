// How to use an adapter: text to copy, with its own names in it.

const ENCODERS = ["bert", "roberta", "xlm-roberta", "electra"];

export function snippets(adapter, base, folder, origin, hasToken) {
  const model = ENCODERS.includes(base?.model_type) ? "AutoModel" : "AutoModelForCausalLM";
  const store = adapter.uri.slice(0, adapter.uri.lastIndexOf("/"));
  const remote = /^(s3|gs|abfss|azure):/.test(adapter.uri);
  const rank = [8, 16, 32, 64, 128, 256, 512].find((r) => r >= adapter.r) ?? adapter.r;
  const token = hasToken ? "\nexport ORAL_TOKEN=...                      # your token" : "";
  return [
    {
      name: "peft",
      text: `from peft import PeftModel
from transformers import ${model}

base = ${model}.from_pretrained("path/to/${adapter.base}")
model = PeftModel.from_pretrained(base, "${folder}")   # the unpacked download`,
    },
    {
      name: "Python client",
      text: `# pip install 'oral-ray[client]'
from oral_ray.client import OralClient

with OralClient("${origin}") as client:${hasToken ? "        # token from ORAL_TOKEN" : ""}
    adapter = client.get("${adapter.id}")
    client.download(adapter.id, "${folder}")   # digest checked`,
    },
    {
      name: "vLLM",
      text: `pip install 'oral-ray[vllm]'
export VLLM_ALLOW_RUNTIME_LORA_UPDATING=true ORAL_URL=${origin}${token}
vllm serve path/to/${adapter.base} --port 8001 --enable-lora --max-lora-rank ${rank}

curl localhost:8001/v1/completions -H 'content-type: application/json' \\
  -d '{"model": "${adapter.id}", "prompt": "..."}'`,
    },
    {
      name: "Ray Serve LLM",
      text: `from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

config = LLMConfig(
    model_loading_config={"model_id": "${adapter.base}", "model_source": "path/to/${adapter.base}"},
    engine_kwargs={"enable_lora": True, "max_lora_rank": ${rank}},
    lora_config={"dynamic_lora_loading_path": "${remote ? store : "s3://BUCKET/PREFIX/adapters"}"},${remote ? "" : "   # this store is a folder; Ray reads s3://"}
)
serve.run(build_openai_app({"llm_configs": [config]}))
# request model: "${adapter.base}:${adapter.id}"`,
    },
  ];
}
