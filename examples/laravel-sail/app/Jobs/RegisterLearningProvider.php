<?php

namespace App\Jobs;

use App\Models\ProviderPlatform;
use App\Services\LearningGateway;
use Illuminate\Bus\Queueable;
use Illuminate\Contracts\Queue\ShouldQueue;
use Illuminate\Foundation\Bus\Dispatchable;

/** Answers the gateway's callback: posts the details of one provider, with the nonce it sent. */
final class RegisterLearningProvider implements ShouldQueue
{
    use Dispatchable;
    use Queueable;

    public function __construct(private readonly string $providerId, private readonly string $nonce)
    {
    }

    public function handle(LearningGateway $gateway): void
    {
        $provider = ProviderPlatform::findOrFail($this->providerId);
        $gateway->addProvider([
            'id' => (string) $provider->id,
            'type' => $provider->type,
            'account_id' => $provider->account_id,
            'url' => $provider->base_url,
            'username' => $provider->username,
            'password' => $provider->password,
        ], $this->nonce);
    }
}
